# SPDX-License-Identifier: Apache-2.0
"""How fast a bundle runs, beside other stacks on the same weights.

Each side lives in a process of its own (child.py), so that its memory can be told from the others'; they are given the
same ids and take turns (sweep.py). Ours is ours.py, the others are the modules of peers/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from genai_bundle.errors import UsageError


@dataclass(frozen=True)
class Times:
    """Seconds until the first token of every sequence was there, and for each step after it."""

    first: float
    steps: tuple[float, ...]


@dataclass(frozen=True)
class Side:
    """What a process is to run. `source`: the bundle, or what was made of it for a peer. `name`: as it is shown.

    precision: "exact" is the weights' own arithmetic in float32, "fast" what the engine does by itself.
    room: the most tokens of a request, for stacks that want to know.
    """

    name: str
    module: str
    source: Path
    precision: str | None
    threads: int
    backend: str = ""
    variant: str = "auto"
    room: int = 0


class Engine(Protocol):
    """A loaded side. Its module has `open_engine(side) -> Engine`."""

    def facts(self) -> dict[str, Any]:
        """What it is: `version`, `precision`, ..."""
        ...

    def run(self, ids: Sequence[int], steps: int, batch: int) -> Times:
        """Greedily generate 1 + `steps` tokens after `ids`, for `batch` equal sequences at once."""
        ...


class Peer(Protocol):
    """A module of peers/: another stack."""

    NAME: str
    PACKAGES: tuple[str, ...]
    """Modules that it needs, with the name that pip has for the first."""
    PIP: str

    def prepare(self, bundle: Path, folder: Path, checkpoint: Path | None) -> Path:
        """Make `folder` of the bundle, where it is not there yet, and return what `Side.source` is. UsageError."""
        ...

    def open_engine(self, side: Side) -> Engine: ...


def timed(step: Callable[[], Any], count: int) -> tuple[float, ...]:
    """How long each of `count` calls takes."""
    import time

    found = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return tuple(found)


def known_peers() -> dict[str, Peer]:
    """All of peers/ by name, found by being there."""
    import pkgutil
    from importlib import import_module

    from genai_bundle.bench import peers

    names = [f"{peers.__name__}.{one.name}" for one in pkgutil.iter_modules(peers.__path__)]
    modules: list[Any] = [import_module(name) for name in names]
    return {module.NAME: module for module in modules}


def missing(peer: Peer) -> list[str]:
    """The modules that it needs and that are not installed."""
    import importlib.util

    return [name for name in peer.PACKAGES if importlib.util.find_spec(name) is None]


def find_peer(name: str) -> Peer:
    """The peer called `name`. UsageError where there is none or it is not installed."""
    known = known_peers()
    if name not in known:
        raise UsageError(f"no peer is called {name!r}", hint=f"Known: all, {', '.join(known)}")
    peer = known[name]
    if absent := missing(peer):
        raise UsageError(f"{name} is not installed ({', '.join(absent)})", hint=f"Try: pip install {peer.PIP}")
    return peer
