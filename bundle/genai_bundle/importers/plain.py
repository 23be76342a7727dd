# SPDX-License-Identifier: Apache-2.0
"""The source's own graphs in the plainest of loops: what a bundle made of them has to give.

Nothing here knows manifests, states or the runner. Caches always grow, even where the bundle shares one buffer, so that
the two ways check each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.errors import SourceError
from genai_bundle.ports import Port, Ports

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""A graph: all its outputs from all its inputs."""

STEPS = 24
"""New tokens of a golden vector: more than the 16 cached steps that a proof needs."""

MARGIN = 2e-3
"""By how much a promised token leads the next one. Closer ones may change places on another engine."""

PROMPTS = ("Once upon a time", "The capital of France is", "1, 2, 3, 4, 5,")
"""A story, a fact, a pattern."""

_DTYPES: Mapping[str, type] = {
    "f32": np.float32, "f16": np.float16, "f64": np.float64, "i64": np.int64, "i32": np.int32, "i16": np.int16,
    "i8": np.int8, "u8": np.uint8, "bool": np.bool_,
}  # fmt: skip


@dataclass
class PlainGraph:
    """A graph that is given again what it returned.

    pairs: {past port: present port}. axes: where each past counts tokens, which begins with none; None for one that
    begins as zeros. once: past ports that keep what the first run returned. prompt: the graph that
    the source runs first instead. length: tokens held.
    """

    run: Run
    ports: Ports
    pairs: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, int | None] = field(default_factory=dict)
    once: frozenset[str] = frozenset()
    prompt: tuple[Run, Ports] | None = None
    length: int = 0
    _past: dict[str, Array] = field(default_factory=dict)

    def __call__(self, count: int, feeds: Mapping[str, Any]) -> Mapping[str, Array]:
        """Run with `count` new tokens. feeds: what each port is given, in any shape with the right elements."""
        first = not self._past
        self._past = self._past or {name: self._empty(self.ports.inputs[name]) for name in self.pairs}
        given = {name: shaped(value, self.ports.inputs[name]) for name, value in feeds.items()}
        run, ports = self.prompt if first and self.prompt else (self.run, self.ports)
        outputs = run({name: value for name, value in {**given, **self._past}.items() if name in ports.inputs})
        kept = set() if first else self.once
        self._past |= {past: outputs[present] for past, present in self.pairs.items() if past not in kept}
        self.length += count
        return outputs

    def _empty(self, port: Port) -> Array:
        dims = [dim if isinstance(dim, int) else 1 for dim in port.dims]
        axis = self.axes[port.name]
        if axis is not None:
            dims[axis] = 0
        return np.zeros(dims, dtype_of(port))


def dtype_of(port: Port) -> type:
    if port.dtype not in _DTYPES:
        raise SourceError(f"its port {port.name!r} is {port.dtype}, which cannot be run here")
    return _DTYPES[port.dtype]


def shaped(value: Any, port: Port) -> Array:
    """A value in the port's type; one element in its rank, a row of several without the leading dim of rank 1."""
    array: Array = np.asarray(value).astype(dtype_of(port))
    if array.size == 1:
        return array.reshape((1,) * len(port.dims))
    return array.reshape(-1) if len(port.dims) == 1 else array


@dataclass(frozen=True)
class Greedy:
    """The likeliest tokens after a prompt; `sure` is how many of them no engine can see otherwise."""

    tokens: tuple[int, ...]
    sure: int


def greedy(step: Callable[[Sequence[int]], Array], ids: Sequence[int], eos: Sequence[int], steps: int) -> Greedy:
    """Continue `ids`, with `step` from new ids to the logits f32[V] behind the last of them, to `eos` or `steps`."""
    tokens: list[int] = []
    sure = 0
    feed = list(ids)
    while len(tokens) < steps and not (tokens and tokens[-1] in eos):
        logits = step(feed).astype(np.float32).reshape(-1)
        best = np.partition(logits, -2)[-2:]
        flat = bool(logits.max() == logits.min())  # the same on every engine: nothing was computed
        if sure == len(tokens) and (flat or best[1] - best[0] > MARGIN):
            sure += 1
        feed = [int(logits.argmax())]
        tokens += feed
    return Greedy(tuple(tokens), sure)


def recorded(step: Callable[[Sequence[int]], Array]) -> tuple[Callable[[Sequence[int]], Array], list[Array]]:
    """The step, and the list to which it adds what it returns."""
    found: list[Array] = []

    def keeping(ids: Sequence[int]) -> Array:
        found.append(step(ids))
        return found[-1]

    return keeping, found


def engine_name() -> str:
    """What ran the source's graphs, for the record."""
    return f"the source's graphs in a plain loop, onnxruntime {version('onnxruntime')}"
