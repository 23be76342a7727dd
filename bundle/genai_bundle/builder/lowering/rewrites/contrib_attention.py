# SPDX-License-Identifier: Apache-2.0
"""Attention of ONNX Runtime: one projection for queries, keys and values, and both caches in one tensor."""

from __future__ import annotations

from math import sqrt

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.lowering.attention import (
    Scores,
    attend,
    count_to,
    in_window,
    join_heads,
    length_of,
    lowest,
    split_heads,
)
from genai_bundle.builder.lowering.writer import (
    UnfitError,
    Values,
    Writer,
    allow,
    dtype_of,
    given,
    must,
    rank_of,
    size_of,
)

OPERATORS = {("com.microsoft", "Attention")}


def rewrite(node: ir.Node, write: Writer) -> Values:
    allow(node, do_rotary=0, past_present_share_buffer=0)
    heads = node.attributes["num_heads"].as_int()
    weights, bias = must(node, 1), given(node, 2)
    total = size_of(weights, 1)
    if total is None:
        raise UnfitError("the width of its weights is unknown")
    widths = list(node.attributes.get_ints("qkv_hidden_sizes", ())) or [total // 3] * 3
    flat = write("MatMul", must(node, 0), weights)
    flat = flat if bias is None else write("Add", flat, bias)
    parts = write.several("Split", 3, flat, widths, axis=2)
    query, key, value = (
        split_heads(write, part, heads, width // heads) for part, width in zip(parts, widths, strict=True)
    )
    past, present, held = given(node, 4), None, None
    if past is not None:
        held = length_of(write, past, 3)
        before = [write("Squeeze", half, [0]) for half in write.several("Split", 2, past, [1, 1], axis=0)]
        key, value = (write("Concat", *pair, axis=2) for pair in zip(before, (key, value), strict=True))
    if len(node.outputs) > 1 and node.outputs[1].name:
        present = write("Concat", *(write("Unsqueeze", part, [0]) for part in (key, value)), axis=0)
    bias = score_bias(node, write, query, held, length_of(write, key, 2), mask=3, more=5)
    scale = node.attributes.get_float("scale", 0.0) or 1 / sqrt(widths[0] // heads)
    result = join_heads(write, attend(write, query, key, value, Scores(scale, bias=bias)), widths[2])
    return result, present


def score_bias(
    node: ir.Node, write: Writer, query: ir.Value, held: ir.Value | None, total: ir.Value, mask: int, more: int
) -> ir.Value | None:
    """What is added to scores: the mask at input `mask`, what input `more` adds, and that later tokens are hidden.

    Past tokens are `held`, all are `total`.
    """
    sequence, found = length_of(write, query, 2), given(node, more)
    if (given_mask := given(node, mask)) is not None:
        low = node.attributes.get_float("mask_filter_value", -10000.0)
        hidden = _padding(write, given_mask, low, query, sequence)
        found = hidden if found is None else write("Add", hidden, found)
    if not node.attributes.get_int("unidirectional", 0):
        return found
    places = count_to(write, sequence)
    places = write("Unsqueeze", places if held is None else write("Add", places, held), [1])
    seen = in_window(write, places, write("Unsqueeze", count_to(write, total), [0]), 0)
    return write("Where", seen, write.number(0.0, query) if found is None else found, lowest(write, query))


def _padding(write: Writer, mask: ir.Value, low: float, like: ir.Value, sequence: ir.Value) -> ir.Value:
    """Of a mask [batch,total] or [batch,sequence,total], with 0 for what is hidden. Raises UnfitError."""
    rank = rank_of(mask)
    if rank not in (2, 3):
        raise UnfitError(f"its mask has {rank} axes")
    wide = write("Unsqueeze", mask, [1, 2] if rank == 2 else [1])
    seen = wide if dtype_of(mask) == ir.DataType.BOOL else write("Greater", wide, write.number(0, mask))
    least = max(low, float(np.finfo(dtype_of(like).numpy()).min))
    hidden = write("Where", seen, write.number(0.0, like), write.number(least, like))
    if rank == 3:
        return hidden
    # One row for each query: not every engine repeats it by itself.
    return write("Expand", hidden, write("Concat", [1, 1], write("Unsqueeze", sequence, [0]), [1], axis=0))
