# SPDX-License-Identifier: Apache-2.0
"""Proof of portable forms: along the source's tokens they give the logits that the source's graphs give, step by step.

Both compute exactly, whatever leave to round activations the source has. Tokens are promised as far as both forms lead
to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from genai_bundle.errors import SourceError
from genai_bundle.importers.graphs import SourceGraph
from genai_bundle.importers.plain import MARGIN, Array, Greedy, Run

if TYPE_CHECKING:
    from genai_bundle.importers.assembling import Pipeline

TOLERANCE = 1e-3
"""Largest difference of a logit from the original's, relative to the largest logit or 1."""

COARSE = 3e-2
"""The same where a graph computes in halves."""

Load = Callable[[Path, onnx.ModelProto], Run]


@dataclass
class Forms:
    """The portable forms of a pipeline's graphs, by name, and how far they were from the source's."""

    pipeline: Pipeline
    portable: Mapping[str, Run]
    allowed: float
    largest: float = 0.0
    failed: str = ""
    lowered: Sequence[str] = field(default=())

    @classmethod
    def of(cls, graphs: Sequence[SourceGraph], pipeline: Pipeline, runs: Mapping[str, Run], load: Load) -> Forms:
        """runs: the source's graphs. load: an engine, from a file and a form of its graph."""
        portable, failed = dict(runs), ""
        changed = [graph for graph in graphs if graph.portable is not None]
        for graph in changed:
            file, lowered = graph.file, graph.portable
            if file is None or lowered is None:
                continue
            try:
                portable[graph.name] = load(file, lowered)
            except SourceError as error:
                failed = failed or str(error)
        names = [graph.name for graph in changed]
        return cls(pipeline, portable, _allowed(changed), failed=failed, lowered=names)

    def check(self, prompt: Any, answer: Greedy, logits: Sequence[Array]) -> Greedy:
        """Compare along an answer, whose logits the source gave. Returns it, promised as far as both forms give it."""
        if not self.lowered or self.failed:
            return answer
        try:
            found = self._logits(prompt, answer.tokens)
        except SourceError as error:
            self.failed = str(error)
            return answer
        self.largest = max(self.largest, gap(logits, found))
        return _surely(answer, found)

    def settled(self, graphs: Sequence[SourceGraph], notes: list[str]) -> list[SourceGraph]:
        """The graphs, without their portable forms where those cannot be run or differ."""
        if self.lowered and not self.failed and not self.largest <= self.allowed:
            self.failed = f"a logit differs by {self.largest:.2g} of the largest, and {self.allowed:g} is allowed"
        if not self.failed:
            return list(graphs)
        notes.append(f"the portable form of {', '.join(self.lowered)} is not used: {self.failed}")
        return [replace(graph, portable=None) for graph in graphs]

    def checks(self) -> list[str]:
        """What was compared, for the record."""
        return [f"portable graphs, logits of each step within {self.allowed:g}"] if self._used else []

    @property
    def _used(self) -> bool:
        return bool(self.lowered) and not self.failed

    def _logits(self, prompt: Any, tokens: Sequence[int]) -> list[Array]:
        """The logits behind a prompt and behind each token but the last, without graphs for the prompt alone."""
        before, body = self.pipeline.before, self.pipeline.body
        values, ids = before.plain(prompt, self.portable) if before else ({}, prompt)
        body = replace(body, stages=[replace(stage, prompt=None) for stage in body.stages])
        step = body.plain(self.portable, values)
        return [step(list(ids)), *(step([token]) for token in tokens[:-1])]


def agreed(
    graph: SourceGraph, run: Run, load: Load, ask: Callable[[Run], Sequence[Array]], notes: list[str]
) -> SourceGraph:
    """A graph that is asked alone, without its portable form where that gives something else. ask: what it gives."""
    if graph.file is None or graph.portable is None:
        return graph
    try:
        far, allowed = gap(ask(run), ask(load(graph.file, graph.portable))), _allowed([graph])
    except SourceError as error:
        notes.append(f"the portable form of {graph.name} is not used: {error}")
        return replace(graph, portable=None)
    if far <= allowed:
        return graph
    notes.append(f"the portable form of {graph.name} is not used: it differs by {far:.2g}, and {allowed:g} is allowed")
    return replace(graph, portable=None)


def gap(first: Sequence[Array], second: Sequence[Array]) -> float:
    """The largest difference of a logit, relative to the largest logit or 1; infinite where one is no number."""
    found = [0.0]
    for one, other in zip(first, second, strict=True):
        finite = np.isfinite(one)
        if not finite.any():
            continue
        size = max(1.0, float(np.abs(one[finite]).max()))
        far = float(np.abs(one[finite] - other[finite]).max()) / size
        found.append(far if np.isfinite(far) else float("inf"))
    return max(found)


def _allowed(graphs: Sequence[SourceGraph]) -> float:
    halves = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    coarse = any(tensor.data_type in halves for graph in graphs for tensor in graph.model.graph.initializer)
    return COARSE if coarse else TOLERANCE


def _surely(answer: Greedy, logits: Sequence[Array]) -> Greedy:
    """The answer, promised only as far as these logits lead to the same tokens."""
    for index, (row, token) in enumerate(zip(logits[: answer.sure], answer.tokens, strict=False)):
        best = np.partition(row, -2)[-2:]
        if int(row.argmax()) != token or (row.max() != row.min() and best[1] - best[0] <= MARGIN):
            return replace(answer, sure=index)
    return answer
