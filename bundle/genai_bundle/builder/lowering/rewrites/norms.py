# SPDX-License-Identifier: Apache-2.0
"""Layer norms with or without a sum before them, and with or without a mean."""

from __future__ import annotations

import onnx_ir as ir

from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer, given, must

CONTRIB = "com.microsoft"

OPERATORS = {
    (CONTRIB, "SimplifiedLayerNormalization"),
    (CONTRIB, "SkipLayerNormalization"),
    (CONTRIB, "SkipSimplifiedLayerNormalization"),
}

_EPSILON = {"SimplifiedLayerNormalization": 1e-5}
"""Where it is not given; 1e-12 for the others."""


def rewrite(node: ir.Node, write: Writer) -> Values:
    simplified = "Simplified" in node.op_type
    epsilon = node.attributes.get_float("epsilon", _EPSILON.get(node.op_type, 1e-12))
    value, scale, more = must(node, 0), must(node, 1), None
    if node.op_type.startswith("Skip"):
        value, scale = write("Add", value, must(node, 1)), must(node, 2)
        bias = given(node, 3 if simplified else 4)
        value = value if bias is None else write("Add", value, bias)
        more = None if simplified else given(node, 3)
    if simplified:
        axis = node.attributes.get_int("axis", -1)
        result = write("RMSNormalization", value, scale, axis=axis, epsilon=epsilon)
    else:
        result = write("LayerNormalization", value, scale, more, axis=-1, epsilon=epsilon)
    if node.op_type.startswith("Skip"):
        return result, None, None, value
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise UnfitError("its second output is used")
    return [result]
