# SPDX-License-Identifier: Apache-2.0
"""FusedMatMul: a product of which an operand is turned, and a factor."""

from __future__ import annotations

import onnx_ir as ir

from genai_bundle.builder.lowering.writer import Values, Writer, allow, must, rank_of

OPERATORS = {("com.microsoft", "FusedMatMul")}


def rewrite(node: ir.Node, write: Writer) -> Values:
    allow(node, transBatchA=0, transBatchB=0)
    left, right = must(node, 0), must(node, 1)
    if node.attributes.get_int("transA", 0):
        left = _turned(write, left)
    if node.attributes.get_int("transB", 0):
        right = _turned(write, right)
    product = write("MatMul", left, right)
    factor = node.attributes.get_float("alpha", 1.0)
    return [product if factor == 1.0 else write("Mul", product, write.number(factor, left))]


def _turned(write: Writer, value: ir.Value) -> ir.Value:
    """The last two axes exchanged; the operator leaves a vector as it is."""
    rank = rank_of(value)
    if rank < 2:
        return value
    return write("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])
