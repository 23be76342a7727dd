# SPDX-License-Identifier: Apache-2.0
"""What a graph does with a weight: whether it can be quantised, and along which axis."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import onnx_ir as ir

from genai_bundle.builder.variants.match import constant, permutes, producer


class Way(Enum):
    """How a node reads a weight. Of MATRIX the products run along the last axis, of TURNED along the first of two."""

    MATRIX = "a matrix [N, K]"
    TURNED = "a matrix [K, N]"
    ROWS = "rows of a table"
    CHOICE = "what chooses experts"
    OTHER = "anything else"


_VIEWS = frozenset({"Transpose", "Unsqueeze", "Squeeze", "Reshape", "Identity", "Expand", "Slice", "Split"})
"""Operators that only hand elements on."""

_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "MatMulNBits"})

_DEEP = 8
"""Nodes that are looked through at most."""


def way(node: ir.Node, index: int) -> Way:
    """How `node` reads its input number `index`, which is a weight of at least two axes."""
    weight = node.inputs[index]
    if weight is None or weight.shape is None or node.domain not in ("", "com.microsoft"):
        return Way.OTHER
    rank = len(weight.shape)
    turned = Way.TURNED if rank == 2 else Way.MATRIX
    if node.op_type in ("Gather", "GatherND") and index == 0:
        rows = row_indices(node)
        return Way.ROWS if rows is not None and (rank > 2 or _of_tokens(rows)) else Way.OTHER
    if _chooses(node):
        return Way.CHOICE
    if node.op_type == "Gemm" and index == 1:
        return Way.MATRIX if node.attributes.get_int("transB", 0) else Way.TURNED
    if node.op_type == "FusedMatMul" and index == 1:
        return Way.MATRIX if node.attributes.get_int("transB", 0) else turned
    if node.op_type == "MatMul":
        return turned if index == 1 else Way.MATRIX
    if node.op_type == "Transpose" and permutes(node, (1, 0)):
        return Way.MATRIX if set(_ends(node)) == {"MatMul"} else Way.OTHER
    if node.op_type in _VIEWS and index == 0 and set(_ends(node)) == {"MatMul"}:
        return Way.MATRIX
    return Way.OTHER


def row_indices(node: ir.Node) -> ir.Value | None:
    """The indices along the first axis of what a node gathers, if that is what it does."""
    indices = node.inputs[1]
    if node.op_type == "Gather":
        return indices if node.attributes.get_int("axis", 0) == 0 else None
    column = producer(indices, "Unsqueeze")
    if column is None or node.attributes.get_int("batch_dims", 0) != 0 or column.inputs[0] is None:
        return None
    axes, shape = constant(column.inputs[1]), column.inputs[0].shape
    last = axes is not None and shape is not None and axes.tolist() in ([-1], [len(shape)])
    return column.inputs[0] if last else None


def _chooses(node: ir.Node) -> bool:
    """Whether the result, without another product, goes to TopK: a little less precision would pick other experts."""
    seen = [node]
    for _ in range(_DEEP):
        seen = [use.node for one in seen for value in one.outputs for use in value.uses()]
        if any(one.op_type == "TopK" for one in seen):
            return True
        seen = [one for one in seen if one.op_type not in _PRODUCTS]
    return False


def _ends(node: ir.Node, depth: int = _DEEP) -> Iterator[str]:
    """The operators that use the node's results, views looked through; "" for an end of the graph."""
    for value in node.outputs:
        if value.is_graph_output() or depth == 0:
            yield ""
        for use in value.uses():
            if use.node.op_type in _VIEWS and use.idx == 0:
                yield from _ends(use.node, depth - 1)
            else:
                yield use.node.op_type


def _of_tokens(value: ir.Value | None) -> bool:
    """Whether indices are token ids: tables of positions and types are small, and every row of them matters."""
    seen: list[ir.Value | None] = [value]
    for _ in range(_DEEP):
        found = [one for one in seen if one is not None]
        if any(one.is_graph_input() and str(one.name).endswith("input_ids") for one in found):
            return True
        nodes = [node for one in found if (node := one.producer()) is not None and node.op_type != "Shape"]
        seen = [one for node in nodes for one in node.inputs]
    return False
