# SPDX-License-Identifier: Apache-2.0
"""Find attention in the portable graph, as one operator or written out, and say what it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import onnx_ir as ir

from genai_bundle.builder.variants.match import constant, only_user, permutes, producer, static

_LAST_TWO = (0, 1, 3, 2)


@dataclass(frozen=True)
class Attention:
    """softmax(cap(query × key × scale) + mask) × value.

    `last` is the node that gives `result` [batch,heads,sequence,size]. `softcap` c stands for c·tanh(x/c), 0 for none.
    `sinks` [heads] are scores of a token that takes part in the softmax and has no value.
    """

    last: ir.Node
    query: ir.Value
    key: ir.Value | None
    value: ir.Value | None
    mask: ir.Value | None
    scale: float
    softcap: float
    sinks: ir.Value | None

    @property
    def name(self) -> str:
        return str(self.last.name)

    @property
    def result(self) -> ir.Value:
        return self.last.outputs[0]


def attentions(graph: ir.Graph) -> list[Attention | str]:
    """Every attention of the graph in its order; for one that is not understood the reason, with its name."""
    return list(_attentions(graph))


def _attentions(graph: ir.Graph) -> Iterator[Attention | str]:
    for node in graph:
        if node.op_type == "Attention" and node.domain == "":
            yield _operator(node)
        elif node.op_type == "Softmax" and (found := _written_out(node)) is not None:
            yield found


def _operator(node: ir.Node) -> Attention | str:
    query = node.inputs[0]
    size = static(node.inputs[1], 3)
    scale = node.attributes.get_float("scale", 0.0) or (1 / sqrt(size) if size else 0.0)
    if query is None or not scale:
        return f"{node.name}: its head size is unknown"
    if any(value is not None for value in node.inputs[4:]) or any(value.uses() for value in node.outputs[1:]):
        return f"{node.name}: it keeps a cache or a score matrix of its own"
    if node.attributes.get_int("is_causal", 0):
        return f"{node.name}: its mask is more than causal order and padding"
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    softcap = node.attributes.get_float("softcap", 0.0)
    return Attention(node, query, node.inputs[1], node.inputs[2], mask, scale, softcap, None)


def _written_out(softmax: ir.Node) -> Attention | str | None:
    """None for a softmax that weighs nothing by its result: a router's, say."""
    weights = softmax.outputs[0]
    scores, sinks = softmax.inputs[0], None
    if (cut := only_user(weights, "Slice")) is not None:
        weights = cut.outputs[0]
        scores, sinks = _without_sinks(softmax, cut)
    last = only_user(weights, "MatMul")
    masked = producer(scores, "Add")
    if last is None or last.inputs[0] is not weights or masked is None:
        return None
    raw, mask = masked.inputs
    raw, softcap = _uncapped(raw)
    scaled = producer(raw, "Mul")
    factor = constant(scaled.inputs[1]) if scaled is not None else None
    if scaled is not None and factor is not None and factor.size == 1:
        raw = scaled.inputs[0]
    product = producer(raw, "MatMul")
    turned = producer(product.inputs[1], "Transpose") if product is not None else None
    if product is None or product.inputs[0] is None or not permutes(turned, _LAST_TWO):
        return f"{last.name}: its scores are not a product of queries and keys, scaled and masked"
    scale = float(factor.item()) if factor is not None and factor.size == 1 else 1.0
    key = turned.inputs[0] if turned is not None else None
    return Attention(last, product.inputs[0], key, last.inputs[1], mask, scale, softcap, sinks)


def _without_sinks(softmax: ir.Node, cut: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """Match softmax(x - max(x)) of x = Concat(scores, sinks as one more column), of which that column is cut off."""
    shifted = producer(softmax.inputs[0], "Sub")
    largest = producer(shifted.inputs[1], "ReduceMax") if shifted is not None else None
    joined = shifted.inputs[0] if shifted is not None else softmax.inputs[0]
    join = producer(joined, "Concat")
    if (
        join is None
        or len(join.inputs) != 2
        or (shifted is not None and (not largest or largest.inputs[0] is not joined))
    ):
        return None, None
    spread = producer(join.inputs[1], "Expand")
    column = producer(spread.inputs[0], "Reshape") if spread is not None else None
    shape = constant(column.inputs[1]) if column is not None else None
    bounds = [constant(value) for value in cut.inputs[1:4]]
    if column is None or shape is None or shape.tolist() != [1, -1, 1, 1] or any(bound is None for bound in bounds):
        return None, None
    begin, end, axis = (bound.tolist() for bound in bounds if bound is not None)
    whole = begin == [0] and end == [-1] and axis in ([3], [-1])
    return (join.inputs[0], column.inputs[0]) if whole and static(join.inputs[1], 3) == 1 else (None, None)


def _uncapped(scores: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Match c·tanh(x/c)."""
    outer = producer(scores, "Mul")
    bend = producer(outer.inputs[0], "Tanh") if outer is not None else None
    inner = producer(bend.inputs[0], "Div") if bend is not None else None
    if outer is None or inner is None:
        return scores, 0.0
    cap, divisor = constant(outer.inputs[1]), constant(inner.inputs[1])
    if cap is None or divisor is None or cap.size != 1 or cap.tolist() != divisor.tolist():
        return scores, 0.0
    return inner.inputs[0], float(cap.item())
