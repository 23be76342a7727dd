# SPDX-License-Identifier: Apache-2.0
"""The fake that tests use, shipped so that applications can test their own code without a model.

script = {"decoder": [{"logits": a}, {"logits": b}]}          # one entry a run
script = {"decoder": lambda feeds: {"logits": f(feeds)}}      # or a function
pipe = genai_runner.load("x.genai", backend=ScriptedBackend(script))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from .base import Array, Graph, LoadOptions, Tensor

Feeds = Mapping[str, Array]
Script = Callable[[Feeds], Mapping[str, Array]] | Sequence[Mapping[str, Array]]


class ScriptedGraph:
    def __init__(self, graph: str, script: Script, calls: list[tuple[str, dict[str, Array]]]) -> None:
        self._graph, self._script, self._calls = graph, script, calls
        self._lines: Iterator[Mapping[str, Array]] | None = None if callable(script) else iter(script)

    def fork(self) -> Graph:
        return ScriptedGraph(self._graph, self._script, self._calls)

    def array(self, tensor: Tensor) -> Array:
        return np.asarray(tensor)

    def run(
        self,
        feeds: Mapping[str, Tensor],
        want: Collection[str],
        *,
        keep: Collection[str] = (),
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Tensor]:
        seen = {name: np.array(value) for name, value in feeds.items()}
        self._calls.append((self._graph, seen))
        if callable(self._script):
            line = self._script(seen)
        else:
            assert self._lines is not None
            found = next(self._lines, None)
            if found is None:
                raise RuntimeError(f"the script of {self._graph!r} has {len(self._script)} lines, the run needs more")
            line = found
        missing = sorted(set(want) - set(line))
        if missing:
            raise RuntimeError(f"the script of {self._graph!r} gives no {', '.join(missing)}")
        for name, array in (into or {}).items():
            array[...] = line[name]
        return {name: line[name] for name in want if name not in (into or {})}


def zeros(model: bytes) -> Callable[[Feeds], Mapping[str, Array]]:
    """The script of a graph that has none: zeros of the declared shapes, symbols taken from the feeds, others 1."""
    graph = onnx.load_from_string(model).graph
    dims = {
        port.name: [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim]
        for port in (*graph.input, *graph.output)
    }
    dtypes = {port.name: tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type) for port in graph.output}

    def script(feeds: Feeds) -> Mapping[str, Array]:
        symbols = {s: n for name, array in feeds.items() for s, n in zip(dims[name], array.shape, strict=True)}
        return {
            name: np.zeros([d if isinstance(d, int) else symbols.get(d, 1) for d in dims[name]], dtype)
            for name, dtype in dtypes.items()
        }

    return script


class ScriptedBackend:
    """`script`: graph name to what it answers. `calls` records (graph, feeds) of every run, in order."""

    name = "scripted"
    computes = False

    def __init__(self, script: Mapping[str, Script] | None = None) -> None:
        self._script = dict(script or {})
        self.calls: list[tuple[str, dict[str, Array]]] = []

    def load(self, graph: str, model: bytes, weights: Mapping[str, memoryview], options: LoadOptions) -> Graph:
        return ScriptedGraph(graph, self._script.get(graph) or zeros(model), self.calls)


BACKEND = ScriptedBackend()
