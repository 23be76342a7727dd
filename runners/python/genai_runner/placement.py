# SPDX-License-Identifier: Apache-2.0
"""What was chosen for each graph of a loaded bundle: said with every result, so that no choice is a silent one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx

from genai_bundle.errors import UsageError

Precision = Literal["exact", "fast"]
PRECISIONS: tuple[Precision, ...] = ("exact", "fast")

STORED = {
    "DequantizeLinear": 0, "GatherBlockQuantized": 0, "MatMulNBits": 1, "MatMulBnb4": 1, "QMoE": 2,
    "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "QLinearMatMul": 3,
    "ConvInteger": 1, "QLinearConv": 3,
}  # fmt: skip
"""Operators that read quantised values, and at which input; weights where that is an initializer."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How a graph was loaded. `operators`: how many the engine put on which device, where it tells. `reason`: what is
    wrong with what would have run otherwise, where another backend or variant was taken for that; else empty."""

    file: str
    variant: str
    backend: str
    device: str
    precision: str
    operators: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""

    def __str__(self) -> str:
        parts = ", ".join(f"{count} operators on {device}" for device, count in self.operators.items())
        split = f" ({parts})" if len(self.operators) > 1 else ""
        why = f", because of {self.reason}" if self.reason else ""
        return f"{self.file} ({self.variant}) on {self.backend}, {self.device}{split}, {self.precision}{why}"


def check_precision(asked: str | None) -> None:
    """Raises UsageError for a word that is no precision; None leaves the choice to `precision_of`."""
    if asked is not None and asked not in PRECISIONS:
        raise UsageError(f"there is no precision {asked!r}", hint=f"Known: {', '.join(PRECISIONS)}")


def precision_of(model: onnx.ModelProto, asked: str | None) -> str:
    """The precision to load a graph for: what was asked, else "fast" where weights are quantised, else "exact".

    Weights that were rounded to four or eight bits have lost more than an engine's reduced forms lose, and every engine
    runs them so by default.
    """
    if asked is not None:
        return asked
    return "fast" if any(_reads_quantised(graph) for graph in graphs_of(model.graph)) else "exact"


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those in its nodes' attributes, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for one in (*inner, *attribute.graphs):
                yield from graphs_of(one)


def _reads_quantised(graph: onnx.GraphProto) -> bool:
    stored = {tensor.name for tensor in graph.initializer}
    return any(
        node.input[index] in stored
        for node in graph.node
        if (index := STORED.get(node.op_type, len(node.input))) < len(node.input)
    )
