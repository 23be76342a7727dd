# SPDX-License-Identifier: Apache-2.0
"""EmbedLayerNormalization: rows of words, places and kinds, added and normalised."""

from __future__ import annotations

import onnx_ir as ir

from genai_bundle.builder.lowering.attention import count_to, length_of
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer, given, must

OPERATORS = {("com.microsoft", "EmbedLayerNormalization")}


def rewrite(node: ir.Node, write: Writer) -> Values:
    if len(node.outputs) > 1 and node.outputs[1].name and node.outputs[1].uses():
        raise UnfitError("its mask's lengths are used")
    ids, places = must(node, 0), given(node, 8)
    if places is None:
        places = write("Unsqueeze", count_to(write, length_of(write, ids, 1)), [0])
    total = write("Add", write("Gather", must(node, 2), ids), write("Gather", must(node, 3), places))
    kinds, table = given(node, 1), given(node, 4)
    if kinds is not None and table is not None:
        total = write("Add", total, write("Gather", table, kinds))
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    result = write("LayerNormalization", total, must(node, 5), must(node, 6), axis=-1, epsilon=epsilon)
    return result, None, total
