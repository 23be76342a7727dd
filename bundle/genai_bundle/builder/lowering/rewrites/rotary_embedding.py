# SPDX-License-Identifier: Apache-2.0
"""RotaryEmbedding of ONNX Runtime, which has its inputs in another order and may count positions from one number."""

from __future__ import annotations

import onnx_ir as ir

from genai_bundle.builder.lowering.attention import count_to, length_of
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer, allow, must, rank_of, size_of

OPERATORS = {("com.microsoft", "RotaryEmbedding")}


def rewrite(node: ir.Node, write: Writer) -> Values:
    allow(node, is_packed_batching=0, scale=1.0)
    value, positions, cos, sin = (must(node, index) for index in range(4))
    four, half = rank_of(value) == 4, size_of(cos, 1)
    if half is None:
        raise UnfitError("the size of its rotation is unknown")
    heads, rotated = node.attributes.get_int("num_heads", 0), node.attributes.get_int("rotary_embedding_dim", 0)
    if not four and not heads:
        width = size_of(value, 2)
        if width is None:
            raise UnfitError("its number of heads is unknown")
        heads = width // (2 * half)
    attributes = {"num_heads": 0 if four else heads, "rotary_embedding_dim": rotated}
    if rank_of(positions) == 1:
        positions = _counted(write, value, positions, 2 if four else 1)
    interleaved = node.attributes.get_int("interleaved", 0)
    return [write("RotaryEmbedding", value, cos, sin, positions, interleaved=interleaved, **attributes)]


def _counted(write: Writer, value: ir.Value, first: ir.Value, axis: int) -> ir.Value:
    """i64[batch,sequence] that counts from `first` i64[1] in every row."""
    row = write("Unsqueeze", write("Add", count_to(write, length_of(write, value, axis)), first), [0])
    rows = write("Concat", write("Shape", value, start=0, end=1), [1], axis=0)
    return write("Expand", row, rows)
