# SPDX-License-Identifier: Apache-2.0
"""TensorScatter: new entries written into a cache of fixed length, at a place of each row, round its end or not."""

from __future__ import annotations

import onnx_ir as ir

from genai_bundle.builder.lowering.attention import count_to, length_of
from genai_bundle.builder.lowering.writer import Values, Writer, given, must, rank_of

OPERATORS = {("", "TensorScatter")}


def rewrite(node: ir.Node, write: Writer) -> Values:
    cache, update, begin = must(node, 0), must(node, 1), given(node, 2)
    rank = rank_of(cache)
    axis = node.attributes.get_int("axis", -2) % rank
    places = write("Unsqueeze", count_to(write, length_of(write, update, axis)), [0])
    if begin is not None:
        places = write("Add", places, write("Unsqueeze", begin, [1]))
        mode = node.attributes.get_string("mode", "linear")
        places = write("Mod", places, length_of(write, cache, axis)) if mode == "circular" else places
    # [rows, sequence] as indices of the update's own shape: other axes only repeat it.
    spread = write("Unsqueeze", places, [other for other in range(1, rank) if other != axis])
    indices = write("Expand", spread, write("Shape", update))
    return [write("ScatterElements", cache, indices, update, axis=axis)]
