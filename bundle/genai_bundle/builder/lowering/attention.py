# SPDX-License-Identifier: Apache-2.0
"""Attention over heads in the form that engines fuse: what the rewrites of fused attention operators share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.lowering.writer import Writer, dtype_of

HEADS_LAST = [0, 2, 1, 3]
"""[batch,heads,sequence,size] <-> [batch,sequence,heads,size]."""


@dataclass(frozen=True)
class Scores:
    """What happens to the product of queries and keys before the softmax.

    softcap c stands for c·tanh(x/c), 0 for none; `bias` is added after that. `sinks` [heads] are scores of a token
    that takes part in the softmax and has no value.
    """

    scale: float
    softcap: float = 0.0
    bias: ir.Value | None = None
    sinks: ir.Value | None = None


def split_heads(write: Writer, value: ir.Value, heads: int, size: int) -> ir.Value:
    """[batch,sequence,heads*size] as [batch,heads,sequence,size]."""
    return write("Transpose", write("Reshape", value, [0, 0, heads, size]), perm=HEADS_LAST)


def join_heads(write: Writer, value: ir.Value, width: int) -> ir.Value:
    """The reverse."""
    return write("Reshape", write("Transpose", value, perm=HEADS_LAST), [0, 0, width])


def repeat_heads(write: Writer, value: ir.Value, heads: int, times: int, size: int) -> ir.Value:
    """[batch,heads,tokens,size] for `times` as many query heads: head i reads head i // times."""
    if times == 1:
        return value
    column = write("Unsqueeze", value, [2])
    expanded = write("Expand", column, [1, 1, times, 1, 1])
    return write("Reshape", expanded, [0, heads * times, -1, size])


def length_of(write: Writer, value: ir.Value, axis: int) -> ir.Value:
    """i64[], the length of an axis."""
    return write("Squeeze", write("Shape", value, start=axis, end=axis + 1))


def count_to(write: Writer, length: ir.Value) -> ir.Value:
    """i64[length], 0 and on."""
    return write("Range", np.array(0, np.int64), length, np.array(1, np.int64))


def lowest(write: Writer, like: ir.Value) -> ir.Value:
    """A score that leaves nothing, and is a number: a row without a key must not become one that is none."""
    return write.number(float(np.finfo(dtype_of(like).numpy()).min), like)


def masked(write: Writer, allowed: ir.Value, like: ir.Value) -> ir.Value:
    """What is added to scores, of a condition."""
    return write("Where", allowed, write.number(0.0, like), lowest(write, like))


def in_window(write: Writer, queries: ir.Value, keys: ir.Value, window: int) -> ir.Value:
    """keys <= queries, and not `window` or more before; no window where it is not above 0. Counts broadcast."""
    allowed = write("LessOrEqual", keys, queries)
    if window > 0:
        begin = write("Sub", queries, np.array(window, np.int64))
        allowed = write("And", allowed, write("Greater", keys, begin))
    return allowed


def attend(write: Writer, query: ir.Value, key: ir.Value, value: ir.Value, scores: Scores) -> ir.Value:
    """All [batch,heads,..,size], with equal heads; the result [batch,heads,sequence,size]."""
    if not scores.softcap and scores.sinks is None:
        return write("Attention", query, key, value, scores.bias, scale=scores.scale)
    product = write("MatMul", query, write("Transpose", key, perm=[0, 1, 3, 2]))
    product = write("Mul", product, write.number(scores.scale, query))
    if scores.softcap:
        cap = write.number(scores.softcap, query)
        product = write("Mul", write("Tanh", write("Div", product, cap)), cap)
    if scores.bias is not None:
        product = write("Add", product, scores.bias)
    if scores.sinks is None:
        return write("MatMul", write("Softmax", product, axis=-1), value)
    column = write("Reshape", scores.sinks, [1, -1, 1, 1])
    like = write("Slice", product, [0], [1], [3])
    column = write("Expand", column, write("Shape", like))
    shares = write("Softmax", write("Concat", product, column, axis=-1), axis=-1)
    return write("MatMul", write("Slice", shares, [0], [-1], [3]), value)
