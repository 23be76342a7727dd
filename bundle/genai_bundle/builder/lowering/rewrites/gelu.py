# SPDX-License-Identifier: Apache-2.0
"""Gelu and its kin: FastGelu (by tanh), BiasGelu, QuickGelu (x times a sigmoid)."""

from __future__ import annotations

import onnx_ir as ir

from genai_bundle.builder.lowering.writer import Values, Writer, given, must

OPERATORS = {("com.microsoft", name) for name in ("Gelu", "FastGelu", "BiasGelu", "QuickGelu")}


def rewrite(node: ir.Node, write: Writer) -> Values:
    value = must(node, 0)
    if node.op_type == "QuickGelu":
        factor = node.attributes.get_float("alpha", 1.702)
        return [write("Mul", value, write("Sigmoid", write("Mul", value, write.number(factor, value))))]
    bias = given(node, 1)
    if bias is not None:
        value = write("Add", value, bias)
    return [write("Gelu", value, approximate="tanh" if node.op_type == "FastGelu" else "none")]
