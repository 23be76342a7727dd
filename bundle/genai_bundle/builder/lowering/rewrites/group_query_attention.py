# SPDX-License-Identifier: Apache-2.0
"""GroupQueryAttention: rotation, cache and attention of ONNX Runtime's decoders, with a cache that grows.

The cache of the operator may be a buffer that is longer than what it holds; here past [batch,heads,past,size] is what
it holds, and present is past and new tokens joined. Rows of one run have equally long pasts, and a row that is shorter
is padded on the right, in the first run.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    masked,
    repeat_heads,
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

OPERATORS = {("com.microsoft", "GroupQueryAttention")}

_OTHERS = range(12, 17)
"""Inputs that no CPU takes: scales of a quantised cache, norms of heads, lengths of chunks."""


def rewrite(node: ir.Node, write: Writer) -> Values:
    allow(node, qk_output=0, k_quant_type="NONE", v_quant_type="NONE", kv_cache_bit_width=0, sliding_window_cache=0)
    allow(node, causal=1)
    if any(given(node, index) is not None for index in _OTHERS):
        raise UnfitError("its cache is quantised, its heads have norms or its rows come in chunks")
    heads = _Heads.of(node)
    query, key, new = _operands(node, write, heads)
    past, before = must(node, 3), must(node, 4)
    sequence, held = length_of(write, query, 2), length_of(write, past, 2)
    rows = count_to(write, sequence)
    places = write("Add", rows, held)
    if node.attributes.get_int("do_rotary", 0):
        query, key = (_rotated(node, write, part, places) for part in (query, key))
    present = write("Concat", past, key, axis=2)
    after = write("Concat", before, new, axis=2)
    scores = _scores(node, write, query, places, length_of(write, present, 2), heads)
    times = heads.query // heads.kept
    keys, values = (repeat_heads(write, part, heads.kept, times, heads.size) for part in (present, after))
    result = attend(write, query, keys, values, scores)
    return join_heads(write, result, heads.query * heads.size), present, after


@dataclass(frozen=True)
class _Heads:
    """Heads of queries, heads of keys and values, numbers of a head."""

    query: int
    kept: int
    size: int

    @classmethod
    def of(cls, node: ir.Node) -> _Heads:
        query, kept = node.attributes.get_int("num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
        size = size_of(given(node, 3), 3)
        if size is None and (width := size_of(node.inputs[0], 2)) is not None:
            size = width // (query if given(node, 1) is not None else query + 2 * kept)
        if not query or not kept or size is None:
            raise UnfitError("its number of heads or their size is unknown")
        return cls(query, kept, size)


def _operands(node: ir.Node, write: Writer, heads: _Heads) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Query, new keys and new values [batch,heads,sequence,size]."""
    parts: list[ir.Value | None] = [given(node, index) for index in range(3)]
    if parts[1] is None:
        widths = [count * heads.size for count in (heads.query, heads.kept, heads.kept)]
        parts = list(write.several("Split", 3, must(node, 0), widths, axis=2))
    counts = (heads.query, heads.kept, heads.kept)
    query, key, value = (
        part if part is not None and part.shape is not None and rank_of(part) == 4
        else split_heads(write, part, count, heads.size)  # type: ignore[arg-type]
        for part, count in zip(parts, counts, strict=True)
    )  # fmt: skip
    return query, key, value


def _rotated(node: ir.Node, write: Writer, value: ir.Value, places: ir.Value) -> ir.Value:
    cos, sin = must(node, 7), must(node, 8)
    half = size_of(cos, 1)
    if half is None:
        raise UnfitError("the size of its rotation is unknown")
    positions = given(node, 9)
    if positions is None:
        rows = write("Shape", value, start=0, end=1)
        shape = write("Concat", rows, [-1], axis=0)
        positions = write("Expand", write("Unsqueeze", places, [0]), write("Concat", rows, [1], axis=0))
        positions = write("Reshape", positions, shape)
    whole = size_of(value, 3) == 2 * half
    return write(
        "RotaryEmbedding", value, cos, sin, positions,
        interleaved=node.attributes.get_int("rotary_interleaved", 0), rotary_embedding_dim=0 if whole else 2 * half,
    )  # fmt: skip


def _scores(node: ir.Node, write: Writer, query: ir.Value, places: ir.Value, total: ir.Value, heads: _Heads) -> Scores:
    """Not later than the query, within the window, and no padding."""
    keys = count_to(write, total)
    window = node.attributes.get_int("local_window_size", -1)
    allowed = in_window(write, write("Unsqueeze", places, [1]), write("Unsqueeze", keys, [0]), window)
    last = write("Reshape", write("Cast", must(node, 5), to=ir.DataType.INT64), [-1, 1, 1, 1])
    bias = masked(write, write("And", allowed, write("LessOrEqual", keys, last)), query)
    if (more := given(node, 10)) is not None:
        cut = write("Slice", more, [0], write("Unsqueeze", total, [0]), [3])
        bias = write("Add", bias, cut)
    sinks = given(node, 11)
    if sinks is None and node.attributes.get_int("smooth_softmax", 0) == 1:
        sinks = write("Constant", value=ir.tensor(np.zeros((heads.query,), dtype_of(query).numpy())))
    scale = node.attributes.get_float("scale", 0.0) or 1 / sqrt(heads.size)
    return Scores(scale, node.attributes.get_float("softcap", 0.0), bias, sinks)
