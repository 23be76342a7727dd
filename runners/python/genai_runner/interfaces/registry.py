# SPDX-License-Identifier: Apache-2.0
"""The engines by name: ours, those that a program registers, those that other packages declare.

[project.entry-points."genai_runner.engines"]
mine = "my_package:MyEngine"

What the proposal calls PipelineFactory and DeviceFactory: an engine makes pipelines and lists its devices.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from genai_bundle.errors import UsageError

from .. import engines as own
from .pipeline import Text2TextPipeline

GROUP = "genai_runner.engines"
DEFAULT = "genai-bundle"


@dataclass(frozen=True, slots=True)
class Device:
    """Something that models run on: `CPU`, `GPU`, `CUDA`; `config` is for the engine that listed it."""

    identifier: str
    config: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Engine(Protocol):
    """A stack behind the interface."""

    @property
    def name(self) -> str: ...

    def devices(self) -> Sequence[Device]:
        """Where it can run here, the usual place first. Raises UsageError where the stack is not installed."""

    def create(self, path: Path, device: Device, **settings: Any) -> Text2TextPipeline:
        """A pipeline for the bundle at `path`. Raises UsageError for a setting that it does not know."""


_registered: dict[str, Engine] = {}


def register_engine(engine: Engine) -> None:
    """Make an engine known to this process; it goes before a declared one of the same name, never before ours."""
    if engine.name in _own():
        raise UsageError(f"the engine {engine.name!r} is there already")
    _registered[engine.name] = engine


def engine_names() -> list[str]:
    """Every known engine, installed or not."""
    return list(dict.fromkeys([*_own(), *_registered, *sorted(point.name for point in entry_points(group=GROUP))]))


def find_engine(name: str) -> Engine:
    """Raises UsageError where there is none, or where that of another package cannot be used."""
    if name in _own():
        engine: Engine = importlib.import_module(f"{own.__name__}.{_module(name)}").ENGINE
        return engine
    if name in _registered:
        return _registered[name]
    points = list(entry_points(group=GROUP, name=name))
    if len(points) != 1:
        problem = "more than one package declares" if points else "there is no"
        raise UsageError(f"{problem} engine {name!r}", hint=f"Known: {', '.join(engine_names())}")
    try:
        found = points[0].load()
        made = found() if isinstance(found, type) else found
    except Exception as error:  # whatever the code of another package raises
        raise UsageError(f"the engine {name!r} cannot be used: {type(error).__name__}: {error}") from error
    if not isinstance(made, Engine) or made.name != name:
        raise UsageError(f"{points[0].value} is no engine called {name!r}", hint="Ask its makers")
    return made


def enumerate_devices(engine: str = DEFAULT) -> list[Device]:
    """Where an engine can run on this machine."""
    return list(find_engine(engine).devices())


def load(
    path: str | Path, engine: str = DEFAULT, *, device: str | Device | None = None, **settings: Any
) -> Text2TextPipeline:
    """A bundle behind the interface, run by an engine of choice.

    engine: `genai-bundle`, `onnxruntime-genai`, `openvino-genai` or one that was registered. Those of other stacks
    have the bundle exported once into the user's cache folder. device: one of `enumerate_devices(engine)`, or its
    identifier; by default the first. settings: `threads`, and what the engine takes besides.

    Raises UsageError where an engine or device is unknown, a package is missing (its hint says which), or the stack
    cannot run this bundle.
    """
    found = find_engine(engine)
    return found.create(Path(path), _device(found, device), **settings)


def _device(engine: Engine, wanted: str | Device | None) -> Device:
    if isinstance(wanted, Device):
        return wanted
    known = engine.devices()
    for device in known:
        if wanted is None or device.identifier.lower() == wanted.lower():
            return device
    names = ", ".join(device.identifier for device in known)
    raise UsageError(f"{engine.name} has no device {wanted!r} here", hint=f"It has {names}")


def _own() -> list[str]:
    """The modules of the folder of engines; those with a `_` in front are parts of them."""
    modules = (module.name for module in pkgutil.iter_modules(own.__path__))
    names = sorted(name.replace("_", "-") for name in modules if not name.startswith("_"))
    return sorted(names, key=lambda name: name != DEFAULT)


def _module(name: str) -> str:
    return name.replace("-", "_")
