# SPDX-License-Identifier: Apache-2.0
"""OpenVINO. With `_openvino_model.py` the only file that imports `openvino`.

Caches that grow, and recurrent state, live inside the infer request: a run's result for them is a handle, which costs
nothing when it is fed back, and is read out or replaced by an array where the runner rewinds or takes over a prefix.
Every other state goes through ports.

Arithmetic is the graph's own, in float32, unless `precision` is "fast": the engine's defaults compute in bfloat16 where
the processor has it, keep caches in 8 bits and quantise activations.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import openvino as ov

from genai_bundle.errors import BackendError, UsageError

from ..cache_folder import cache_folder
from . import _openvino_model as models
from .base import Array, Graph, LoadOptions, StatePort, Tensor

INSIDE = ("append", "replace")
"""Updates whose state the request holds. The others are arrays that the runner writes, or that later runs only read."""

EXACT: Mapping[str, object] = {
    "EXECUTION_MODE_HINT": "ACCURACY",
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


SETTINGS = (
    "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING", "MODEL_PRIORITY", "NPU_TURBO",
    "PERFORMANCE_HINT", "SCHEDULING_CORE_TYPE",
)  # fmt: skip
"""Device options: the engine's own properties, but for those that name files or undo what `precision` says."""


class Engine:
    """A compiled model that requests share, and what is needed to compile it again.

    A run that fails leaves a compiled model that computes silently wrong for every request (seen where a shape does not
    fit, OpenVINO 2026.4). So it is given up then, and made anew for requests that have nothing to lose.
    """

    def __init__(self, read: models.ReadModel, ports: Iterable[StatePort], build: Callable[[ov.Model], Any]) -> None:
        states = list(ports)
        inside = [port for port in states if port.update in INSIDE]
        self.variables = models.make_stateful(read.model, inside)
        self.pasts = {port.present: port.past for port in inside if port.past in self.variables}
        self.shared = {port.present: port.axis for port in states if port.update == "shared"}
        self.read, self._build, self._lock = read, build, threading.Lock()
        self._compiled: Any = build(read.model)
        self.number = 1
        self.inputs = _indices(self._compiled.inputs)
        self.outputs = _indices(self._compiled.outputs)

    def request(self) -> tuple[Any, int]:
        """A new infer request, and the number of the compiled model that it belongs to."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._build(self.read.model)
            return self._compiled.create_infer_request(), self.number

    def give_up(self, number: int) -> None:
        with self._lock:
            if number == self.number:
                self._compiled = None
                self.number += 1


@contextmanager
def _plainly() -> Iterator[None]:
    """Let an error of the engine begin with what is wrong: its first lines are places in its source."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = [line for line in lines if line and not line.startswith(("Exception from", "To facilitate"))]
        raise RuntimeError(" ".join(said) or str(error)) from error


def _indices(ports: Iterable[Any]) -> dict[str, int]:
    return {name: index for index, port in enumerate(ports) for name in port.get_names()}


@dataclass(slots=True, eq=False)
class Held:
    """The content of one state as one run left it. The next run of the same request ends it.

    Not frozen, although nothing changes it: one is made for each cache in each step, and takes a third of the time so.
    """

    owner: OpenVinoGraph
    past: str
    run: int

    def check(self) -> None:
        if self.run != self.owner.runs or self.owner.spoiled:
            message = f"the state at {self.past!r} is held no more: a later run went on from it, or a run failed"
            raise BackendError(message, hint="Start a new request")

    def array(self) -> Array:
        self.check()
        return self.owner.read(self.past)


class OpenVinoGraph:
    """An infer request, made when it is first needed, and what is bound to it: only what changes is bound anew."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._request: Any = None
        self._number = 0
        self._states: dict[str, Any] = {}
        self._bound: dict[str, Tensor] = {}
        self._fed: dict[str, Array] = {}
        self.runs = 0

    def fork(self) -> Graph:
        return OpenVinoGraph(self._engine)

    def array(self, tensor: Tensor) -> Array:
        array = tensor.array() if isinstance(tensor, Held) else np.asarray(tensor)
        # NumPy has two types for 64 bits where C has: one of them OpenVINO does not know.
        return array.view(array.dtype.str) if array.dtype.char in "qQ" else array

    @property
    def spoiled(self) -> bool:
        """A run over the same compiled model failed since the request was made."""
        return self._number != self._engine.number

    def read(self, past: str) -> Array:
        """A copy of a state as the last run left it."""
        return np.array(self._states[past].state.data)

    def run(
        self,
        feeds: Mapping[str, Tensor],
        want: Collection[str],
        *,
        keep: Collection[str] = (),
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Tensor]:
        into = into or {}
        if self.spoiled:
            self._renew()
        states = self._to_set(feeds)
        self.runs += 1  # what was held before is gone from here on, whether this run succeeds or not
        with _plainly():
            for past, array in states.items():
                self._set(past, array)
            self._bind_all(feeds)
            self._infer()
        for name, array in into.items():
            self._write(name, array)
        return {name: self._result(name, name in keep) for name in want if name not in into}

    # -- before a run -------------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        self.runs += 1
        self._bound = {}
        self._request, self._number = self._engine.request()
        states = {state.name: state for state in self._request.query_state()}
        self._states = {past: states[one.name] for past, one in self._engine.variables.items()}
        if models.BEAM in self._engine.inputs:
            self._bind(models.BEAM, np.zeros(1, np.int32))

    def _to_set(self, feeds: Mapping[str, Tensor]) -> dict[str, Array]:
        """The states that this run begins with, but for those that the request holds already."""
        states: dict[str, Array] = {}
        for past in self._engine.variables:
            tensor = feeds[past]
            if isinstance(tensor, Held) and tensor.owner is self and tensor.past == past:
                tensor.check()
            else:
                states[past] = self.array(tensor)
        return states

    def _set(self, past: str, array: Array) -> None:
        if self._engine.variables[past].has_rows and array.shape[0] != len(self._bound[models.BEAM]):
            self._bind(models.BEAM, np.arange(array.shape[0], dtype=np.int32))
        # Never `reset`: outside of fused attention an empty beginning is not taken over then, and what a run before it
        # left, in this request or another, is read once more.
        self._states[past].state = ov.Tensor(np.require(array, requirements="C"))

    def _bind_all(self, feeds: Mapping[str, Tensor]) -> None:
        engine = self._engine
        for name, tensor in feeds.items():
            if name in engine.inputs:
                if self._bound.get(name) is not tensor:
                    self._bind(name, tensor)
            elif name not in engine.variables and name not in engine.read.unused:
                raise BackendError(f"the graph as this engine reads it has no input {name!r} that can be fed")
        for name, default in engine.read.defaults.items():
            if name in engine.inputs and name not in feeds and self._bound.get(name) is not default:
                self._bind(name, default)

    def _bind(self, name: str, tensor: Tensor) -> None:
        array = self._fed[name] = self.array(tensor)  # the engine does not keep what it is bound to alive
        shared = array.flags.c_contiguous and array.flags.writeable
        self._request.set_input_tensor(
            self._engine.inputs[name], ov.Tensor(np.require(array, requirements="C"), shared_memory=shared)
        )
        if shared or not array.flags.writeable:
            self._bound[name] = tensor
        else:  # a copy was bound: later writes to the original would not be seen
            self._bound.pop(name, None)

    # -- the run, and after it ----------------------------------------------------------------------------------------

    def _infer(self) -> None:
        try:
            # Not `infer`: with one thread that passes over a failure and leaves the outputs of the run before.
            self._request.start_async()
            self._request.wait()
        except BaseException:
            self._engine.give_up(self._number)
            raise
        if self.spoiled:
            raise BackendError("another request failed meanwhile, which spoils this one", hint="Start it again")

    def _output(self, name: str) -> Array:
        """A view of an output; the next run writes it."""
        data: Array = self._request.get_output_tensor(self._engine.outputs[name]).data
        return data

    def _result(self, name: str, keep: bool) -> Tensor:
        past = self._engine.pasts.get(name)
        if past is None:
            return np.array(self._output(name))
        held = Held(self, past, self.runs)
        return held if keep else held.array()

    def _write(self, name: str, array: Array) -> None:
        # Not written by the engine itself: it may write an output before it has read all of an input in the same place.
        output, axis = self._output(name), self._engine.shared.get(name)
        if axis is not None and output.shape[axis] < array.shape[axis]:  # the rest of a shared buffer is not in use
            array = array[(slice(None),) * axis + (slice(0, output.shape[axis]),)]
        if output.shape != array.shape:
            raise BackendError(f"output {name!r} is {list(output.shape)}, where its buffer is {list(array.shape)}")
        array[...] = output


class OpenVinoBackend:
    name = "openvino"
    version = ov.__version__

    def devices(self) -> list[str]:
        """The devices that are here, and `auto` for the engine's own choice."""
        return [*(device.lower() for device in _core().available_devices), "auto"]

    def load(self, graph: str, model: bytes, weights: Mapping[str, memoryview], options: LoadOptions) -> Graph:
        core = _core()
        device = _device(core, options.device)
        config = _config(core, device, options)
        with _plainly():
            read = models.read_model(core, model, weights)
            return OpenVinoGraph(Engine(read, options.states, partial(_compile, core, device, config)))


def _compile(core: ov.Core, device: str, config: Mapping[str, object], model: ov.Model) -> Any:
    return core.compile_model(model, device, dict(config))


@cache
def _core() -> ov.Core:
    return ov.Core()


def _device(core: ov.Core, name: str) -> str:
    """The engine's name for a device: `cpu`, `gpu`, `gpu.1`, `npu`, or `auto` for its own choice."""
    device, present = name.upper(), core.available_devices
    if device == "AUTO" or device in present or f"{device}.0" in present:
        return device
    known = ", ".join(["auto", *(one.lower() for one in present)])
    raise UsageError(f"OpenVINO finds no device {name!r} here", hint=f"It has {known}")


def _config(core: ov.Core, device: str, options: LoadOptions) -> dict[str, object]:
    config: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": options.threads}
    if options.precision == "exact":
        config |= EXACT
    for key, value in options.device_options.items():
        if key.upper() not in SETTINGS:
            hint = f"Known: {', '.join(SETTINGS)}"
            raise UsageError(f"OpenVINO takes no device option {key!r}", hint=hint)
        config[key.upper()] = value
    known = core.get_property(device, "SUPPORTED_PROPERTIES")
    config = {key: value for key, value in config.items() if key in known}
    # On the CPU a compiled model in a file is a second copy of all weights on disk, which are packed again when it is
    # read: 2.2 instead of 3.2 s for 400 MB. Elsewhere kernels are compiled, which takes far longer.
    folder = cache_folder("openvino") if device != "CPU" else None
    return config | ({"CACHE_DIR": str(folder)} if folder else {})


BACKEND = OpenVinoBackend()
