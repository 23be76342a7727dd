# SPDX-License-Identifier: Apache-2.0
"""The one interface between the runner and an engine.

A backend turns the bytes of a sanitised ONNX graph into a `Graph`; a graph has one verb, `run`. Before widening this
file, ask whether the need is the runner's (then it belongs in `state.py` or `interpreter.py`) or one engine's (then it
stays behind `load`): every method added here is one that each third-party backend must write.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from genai_bundle.errors import UsageError

from ..plugins import load_plugin, plugin_names

FAKE = "scripted"  # what tests use; it computes nothing

Array = np.ndarray[Any, np.dtype[Any]]
# What flows between a graph and its state: a NumPy array, or a handle that only the backend which made it understands.
Tensor = Any


@dataclass(frozen=True, slots=True)
class StatePort:
    """A pair of ports by which a graph hands state to its own next run: output `present` is the next input `past`.

    `update` and `axis` are those of the manifest's state, as the loaded variant keeps it. An engine that can hold such
    state inside itself may do so, and answer `keep` with a handle; one that cannot ignores this.
    """

    past: str
    present: str
    update: str
    axis: int


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a graph is loaded.

    `threads`: worker threads, at least 1. `low_memory`: weights stay in the file's mapping and are not repacked, which
    opens in milliseconds and shares pages between processes, at the price of slower matrix products. Neither changes a
    result beyond rounding. `precision`: "exact" computes the graph's own arithmetic, accumulating in float32; "fast"
    lets the engine use its reduced forms (bfloat16, int8 activations, 8-bit caches). `states`: see `StatePort`.

    `device_options`: settings of the device, by the names that its maker gives them; a backend takes those of a list
    and refuses all others. `cpu_fallback`: parts of a graph that the device lacks may run on the CPU; without it a
    backend refuses such a graph. A backend that does not have the device raises UsageError.
    """

    device: str = "cpu"
    threads: int = 1
    low_memory: bool = False
    precision: str = "exact"
    states: tuple[StatePort, ...] = ()
    device_options: Mapping[str, str] = field(default_factory=dict)
    cpu_fallback: bool = False


class Graph(Protocol):
    """A loaded graph. It may serve many requests; `fork` gives the one that belongs to a single request.

    It may say more of itself by attributes: `precision`, where it is another than was asked ("exact" of an engine that
    knows nothing else), and `operators`, how many of them run on which device.
    """

    def run(
        self,
        feeds: Mapping[str, Tensor],
        want: Collection[str],
        *,
        keep: Collection[str] = (),
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the outputs named in `want`.

        `feeds` holds every input port: arrays of the port's dtype and rank, or handles that this graph returned.
        Outputs come back as arrays, but those named in `keep` may come as handles: fed back later, they cost no copy.
        `into` names outputs to be written in place into the given array, which may also be among the feeds; they
        are left out of the result. Whoever hands in the same object for `want`, `keep` or `into` again has not changed
        it meanwhile. Raises whatever the engine raises; the caller names graph and step.
        """
        ...

    def array(self, tensor: Tensor) -> Array:
        """The NumPy array behind a tensor of this graph."""
        ...

    def fork(self) -> Graph:
        """A graph over the same weights whose bindings belong to one request."""
        ...


class Backend(Protocol):
    """An engine. `name` is what `when.backend` of a variant and `--backend` name."""

    @property
    def name(self) -> str: ...

    def load(self, graph: str, model: bytes, weights: Mapping[str, memoryview], options: LoadOptions) -> Graph:
        """Load the graph called `graph` from its serialised model.

        `weights` maps every external-data location of the model to the bytes of that member, a read-only view of the
        bundle's mapping. A backend that does not copy must keep the views alive as long as the graph.
        """
        ...


def only_cpu(backend: str, options: LoadOptions) -> None:
    """For backends that know no other device. Raises UsageError where another one is asked for."""
    if options.device != "cpu" or options.device_options:
        raise UsageError(
            f"backend {backend!r} runs on the cpu and takes no device options", hint="Leave the device out"
        )


def engine_names() -> list[str]:
    """Every backend that computes, whether or not its engine is installed: ours, then those of other packages."""
    own = _own()
    return [*(name for name in own if name != FAKE), *plugin_names(own)]


def _own() -> list[str]:
    """The modules of this folder, but for this one and for those that belong to a backend, `_NAME_something.py`."""
    import pkgutil

    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def find_backend(name: str) -> Backend:
    """The backend called `name`, imported now: one of this folder, else one of another package (see plugins.py).

    Raises UsageError when there is none, its engine is not installed, or a plugin cannot be used.
    """
    import importlib

    own = _own()
    if name not in own:
        others = plugin_names(own)
        if name not in others:
            raise UsageError(f"no backend is called {name!r}", hint=f"Known here: {', '.join([*own, *others])}")
        return load_plugin(name)
    try:
        module = importlib.import_module(f"{__package__}.{name}")
    except ImportError as error:
        raise UsageError(f"backend {name!r} is not installed: {error}", hint=f"Try: pip install {name}") from error
    backend: Backend = module.BACKEND
    return backend
