# SPDX-License-Identifier: Apache-2.0
"""MultiHeadAttention: projected queries, keys and values, or a cache that is read as it is."""

from __future__ import annotations

from math import sqrt

import onnx_ir as ir

from genai_bundle.builder.lowering.attention import Scores, attend, join_heads, length_of, split_heads
from genai_bundle.builder.lowering.rewrites.contrib_attention import score_bias
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer, given, must, rank_of, size_of

OPERATORS = {("com.microsoft", "MultiHeadAttention")}


def rewrite(node: ir.Node, write: Writer) -> Values:
    if any(given(node, index) is not None for index in (8, 9)):
        raise UnfitError("its cache is a buffer for beams")
    heads = node.attributes["num_heads"].as_int()
    query, key, value = _operands(node, write, heads)
    held, past, before = None, given(node, 6), given(node, 7)
    if past is not None and before is not None:
        held = length_of(write, past, 2)
        key, value = write("Concat", past, key, axis=2), write("Concat", before, value, axis=2)
    size, width = size_of(query, 3), size_of(value, 3)
    if size is None or width is None:
        raise UnfitError("the size of its heads is unknown")
    bias = score_bias(node, write, query, held, length_of(write, key, 2), mask=4, more=5)
    scale = node.attributes.get_float("scale", 0.0) or 1 / sqrt(size)
    result = attend(write, query, key, value, Scores(scale, bias=bias))
    return join_heads(write, result, heads * width), key, value


def _operands(node: ir.Node, write: Writer, heads: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Query, key and value [batch,heads,tokens,size], each with its part of the bias."""
    query, key, value = must(node, 0), must(node, 1), must(node, 2)
    if rank_of(query) != 3 or rank_of(key) not in (3, 4) or rank_of(key) != rank_of(value):
        raise UnfitError("its operands are packed")
    bias = given(node, 3)
    cached = rank_of(key) == 4
    operands = [query, key, value]
    if bias is not None:
        widths = [size_of(query, 2)] * 2 + [size_of(value, 2) or (size_of(bias, 0) or 0) - 2 * (size_of(query, 2) or 0)]
        parts = write.several("Split", 3, bias, [width or 0 for width in widths], axis=0)
        operands = [
            one if cached and index else write("Add", one, part)
            for index, (one, part) in enumerate(zip(operands, parts, strict=True))
        ]
    sizes = [size_of(one, 2) for one in operands]
    found = []
    for one, width in zip(operands, sizes, strict=True):
        if rank_of(one) == 4:
            found.append(one)
            continue
        if width is None:
            raise UnfitError("the size of its heads is unknown")
        found.append(split_heads(write, one, heads, width // heads))
    return found[0], found[1], found[2]
