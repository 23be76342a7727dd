# SPDX-License-Identifier: Apache-2.0
"""Attention and what stands around it: ai.onnx Attention, RotaryEmbedding, TensorScatter, GroupQueryAttention."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backends.base import Array
from ..case import Case
from ..use import Use

_numbers = np.random.default_rng(5)


def normal(*dims: int) -> Array:
    return _numbers.standard_normal(dims).astype(np.float32)


def attend(
    q: Array, k: Array, v: Array, allowed: Any = True, bias: Any = 0.0, sink: Any = -np.inf, **how: float
) -> Array:
    """softmax(softcap(q k^T scale) + mask) v, [batch, heads, length, size]; key heads are repeated for groups.

    `sink`: the score of a key that every query sees besides, and whose value is zero.
    """
    k, v = (np.repeat(array, q.shape[1] // array.shape[1], axis=1) for array in (k, v))
    scores = q @ k.swapaxes(2, 3) * how.get("scale", q.shape[-1] ** -0.5)
    if cap := how.get("softcap", 0.0):
        scores = cap * np.tanh(scores / cap)
    weights = np.exp(np.where(allowed, scores + bias, -np.inf))
    total = weights.sum(-1, keepdims=True) + np.exp(sink)
    return np.asarray(weights / total @ v, np.float32)


def causal(queries: int, keys: int) -> Array:
    """The last query sees all keys."""
    return np.tril(np.ones((queries, keys), bool), keys - queries)


def merge(x: Array) -> Array:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def split(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


Q, K, V = normal(1, 4, 5, 8), normal(1, 4, 5, 8), normal(1, 4, 5, 8)
K2, V2 = normal(1, 2, 5, 8), normal(1, 2, 5, 8)
PAST_K, PAST_V = normal(1, 4, 3, 8), normal(1, 4, 3, 8)
ALL_K, ALL_V = np.concatenate([PAST_K, K], 2), np.concatenate([PAST_V, V], 2)
MASK = np.array([[1, 0, 1, 1, 0], [1, 1, 0, 1, 1], [1, 0, 1, 0, 1], [0, 1, 1, 1, 1], [1, 1, 0, 0, 1]], bool)
MASK |= np.eye(5, dtype=bool)
BIAS = normal(1, 1, 5, 5)
WIDE_V = normal(1, 4, 5, 6)
QKV = {"q": Q, "k": K, "v": V}
DISTANCE = np.arange(5)[:, None] - np.arange(5)

PORTS = "float[1,4,N,8] q, float[1,4,M,8] k, float[1,4,M,8] v"
MASKED = "(float[1,4,N,8] q, float[1,4,M,8] k, float[1,4,M,8] v, bool[N,M] m) => (float[1,4,N,8] y)"
GIVES = "=> (float[1,4,N,8] y)"
CAUSAL = MASK & causal(5, 5)


def is_causal(use: Use) -> bool:
    return bool(use.attribute("is_causal", 0))


def windowed(use: Use) -> bool:
    return any(use.attribute(f"{side}_window_size", -1) >= 0 for side in ("left", "right"))


def grouped(use: Use) -> bool:
    heads = (use.attribute("q_num_heads"), use.attribute("kv_num_heads"))
    shapes = use.shape(0), use.shape(1)
    if None not in heads:
        return bool(heads[0] != heads[1])
    if shapes[0] is None or shapes[1] is None or len(shapes[0]) != 4 or len(shapes[1]) != 4:
        return True
    return None in (shapes[0][1], shapes[1][1]) or bool(shapes[0][1] != shapes[1][1])


def uneven(use: Use) -> bool:
    key, value = use.shape(1), use.shape(2)
    return bool(key and value and None not in (key[-1], value[-1]) and key[-1] != value[-1])


def flat(use: Use) -> bool:
    return use.attribute("q_num_heads") is not None


def mask_type(use: Use, boolean: bool) -> bool:
    return use.has(3) and use.dtype(3) in (None, 9) if boolean else use.has(3) and use.dtype(3) != 9


ATTENTION = (
    Case("Attention", "heads of their own", f"g ({PORTS}) {GIVES} {{ y = Attention <scale = 0.5> (q, k, v) }}",
         QKV, (attend(Q, K, V, scale=0.5),)),
    Case("Attention", "is_causal", f"g ({PORTS}) {GIVES} {{ y = Attention <is_causal = 1> (q, k, v) }}",
         QKV, (attend(Q, K, V, causal(5, 5)),), is_causal),
    Case("Attention", "is_causal, fewer queries than keys: the first sees the first key",
         "g (float[1,4,N,8] q, float[1,4,M,8] k, float[1,4,M,8] v) => (float[1,4,N,8] y)"
         "{ y = Attention <is_causal = 1> (q, k, v) }",
         {**QKV, "q": Q[:, :, :2]}, (attend(Q[:, :, :2], K, V, np.tril(np.ones((2, 5), bool))),), None),
    Case("Attention", "attn_mask bool", f"g {MASKED} {{ y = Attention (q, k, v, m) }}",
         {**QKV, "m": MASK}, (attend(Q, K, V, MASK),), lambda use: mask_type(use, True)),
    Case("Attention", "attn_mask float",
         f"g ({PORTS}, float[1,1,N,M] m) {GIVES} {{ y = Attention (q, k, v, m) }}",
         {**QKV, "m": BIAS}, (attend(Q, K, V, bias=BIAS),), lambda use: mask_type(use, False)),
    Case("Attention", "attn_mask of one row for all queries",
         "g (float[1,4,N,8] q, float[1,4,M,8] k, float[1,4,M,8] v, bool[1,M] m) => (float[1,4,N,8] y)"
         "{ y = Attention (q, k, v, m) }",
         {**QKV, "m": MASK[1:2]}, (attend(Q, K, V, MASK[1:2]),), None),
    Case("Attention", "attn_mask and is_causal", f"g {MASKED} {{ y = Attention <is_causal = 1> (q, k, v, m) }}",
         {**QKV, "m": MASK}, (attend(Q, K, V, CAUSAL),), lambda use: is_causal(use) and use.has(3)),
    Case("Attention", "grouped heads",
         "g (float[1,4,N,8] q, float[1,2,M,8] k, float[1,2,M,8] v) => (float[1,4,N,8] y) { y = Attention (q, k, v) }",
         {"q": Q, "k": K2, "v": V2}, (attend(Q, K2, V2),), grouped),
    Case("Attention", "inputs of rank 3",
         "g (float[1,N,32] q, float[1,M,16] k, float[1,M,16] v) => (float[1,N,32] y)"
         "{ y = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v) }",
         {"q": merge(Q), "k": merge(K2), "v": merge(V2)}, (merge(attend(Q, K2, V2, causal(5, 5))),), flat),
    Case("Attention", "values of another size than keys",
         "g (float[1,4,N,8] q, float[1,4,M,8] k, float[1,4,M,6] v) => (float[1,4,N,6] y) { y = Attention (q, k, v) }",
         {"q": Q, "k": K, "v": WIDE_V}, (attend(Q, K, WIDE_V),), uneven),
    Case("Attention", "past and present, is_causal",
         f"g ({PORTS}, float[1,4,P,8] pk, float[1,4,P,8] pv)"
         "=> (float[1,4,N,8] y, float[1,4,T,8] nk, float[1,4,T,8] nv)"
         "{ y, nk, nv = Attention <is_causal = 1> (q, k, v, , pk, pv) }",
         {**QKV, "pk": PAST_K, "pv": PAST_V}, (attend(Q, ALL_K, ALL_V, causal(5, 8)), ALL_K, ALL_V),
         lambda use: use.has(4)),
    Case("Attention", "past and present, attn_mask and is_causal",
         f"g ({PORTS}, bool[N,T] m, float[1,4,P,8] pk, float[1,4,P,8] pv)"
         "=> (float[1,4,N,8] y, float[1,4,T,8] nk, float[1,4,T,8] nv)"
         "{ y, nk, nv = Attention <is_causal = 1> (q, k, v, m, pk, pv) }",
         {**QKV, "m": np.pad(MASK, ((0, 0), (3, 0)), constant_values=True), "pk": PAST_K, "pv": PAST_V},
         (attend(Q, ALL_K, ALL_V, np.pad(MASK, ((0, 0), (3, 0)), constant_values=True) & causal(5, 8)), ALL_K, ALL_V),
         lambda use: use.has(3) and use.has(4) and is_causal(use)),
    Case("Attention", "softcap", f"g ({PORTS}) {GIVES} {{ y = Attention <softcap = 0.5> (q, k, v) }}",
         QKV, (attend(Q, K, V, softcap=0.5),), lambda use: bool(use.attribute("softcap", 0.0))),
    Case("Attention", "softcap and attn_mask", f"g {MASKED} {{ y = Attention <softcap = 0.5> (q, k, v, m) }}",
         {**QKV, "m": MASK}, (attend(Q, K, V, MASK, softcap=0.5),),
         lambda use: bool(use.attribute("softcap", 0.0)) and (use.has(3) or is_causal(use))),
    Case("Attention", "nonpad_kv_seqlen, is_causal",
         "g (float[1,4,2,8] q, float[1,4,5,8] k, float[1,4,5,8] v, int64[1] n) => (float[1,4,2,8] y)"
         "{ y = Attention <is_causal = 1> (q, k, v, , , , n) }",
         {"q": Q[:, :, :2], "k": K, "v": V, "n": np.array([4])},
         (attend(Q[:, :, :2], K[:, :, :4], V[:, :, :4], causal(2, 4)),), lambda use: use.has(6), opset=24),
    Case("Attention", "nonpad_kv_seqlen, attn_mask",
         "g (float[1,4,N,8] q, float[1,4,M,8] k, float[1,4,M,8] v, bool[N,M] m, int64[1] n) => (float[1,4,N,8] y)"
         "{ y = Attention (q, k, v, m, , , n) }",
         {**QKV, "m": MASK | (np.arange(5) == 0), "n": np.array([4])},
         (attend(Q, K, V, (MASK | (np.arange(5) == 0)) & (np.arange(5) < 4)),),
         lambda use: use.has(6) and use.has(3), opset=24),
    Case("Attention", "left_window_size, is_causal",
         f"g ({PORTS}) {GIVES} {{ y = Attention <is_causal = 1, left_window_size = 1> (q, k, v) }}",
         QKV, (attend(Q, K, V, (DISTANCE >= 0) & (DISTANCE <= 1)),), windowed, opset=25),
    Case("Attention", "left_window_size and right_window_size",
         f"g ({PORTS}) {GIVES} {{ y = Attention <left_window_size = 1, right_window_size = 2> (q, k, v) }}",
         QKV, (attend(Q, K, V, (DISTANCE >= -2) & (DISTANCE <= 1)),), windowed, opset=25),
    Case("Attention", "qk_matmul_output",
         f"g ({PORTS}) => (float[1,4,N,8] y, float[1,4,N,M] s) {{ y, , , s = Attention (q, k, v) }}",
         QKV, (attend(Q, K, V), (Q @ K.swapaxes(2, 3) / np.sqrt(8)).astype(np.float32)), lambda use: use.gives(3)),
)  # fmt: skip


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool = False) -> Array:
    """The first 2 x cos.shape[-1] channels of x[batch, heads, length, size] turned, the others as they are."""
    width = cos.shape[-1]
    turned = x[..., : 2 * width]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., :width], turned[..., width:])
    pair = a * cos - b * sin, b * cos + a * sin
    y = np.stack(pair, -1).reshape(turned.shape) if interleaved else np.concatenate(pair, -1)
    return np.concatenate([y, x[..., 2 * width :]], -1)


ANGLES = np.arange(16, dtype=np.float32)[:, None] * np.array([1.0, 0.3, 0.1, 0.03], np.float32)
COS, SIN = np.cos(ANGLES), np.sin(ANGLES)
PLACES = np.array([[3, 4, 5, 7, 9]])
TABLES = {"c": COS, "s": SIN, "p": PLACES}
_ROTARY = "g (float[1,4,N,8] x, float[16,4] c, float[16,4] s, int64[1,N] p) => (float[1,4,N,8] y)"

ROTARY = (
    Case("RotaryEmbedding", "halves", f"{_ROTARY} {{ y = RotaryEmbedding (x, c, s, p) }}",
         {"x": Q, **TABLES}, (rotate(Q, COS[PLACES[0]], SIN[PLACES[0]]),),
         lambda use: not use.attribute("interleaved", 0)),
    Case("RotaryEmbedding", "interleaved", f"{_ROTARY} {{ y = RotaryEmbedding <interleaved = 1> (x, c, s, p) }}",
         {"x": Q, **TABLES}, (rotate(Q, COS[PLACES[0]], SIN[PLACES[0]], True),),
         lambda use: bool(use.attribute("interleaved", 0))),
    Case("RotaryEmbedding", "rotary_embedding_dim",
         "g (float[1,4,N,8] x, float[16,2] c, float[16,2] s, int64[1,N] p) => (float[1,4,N,8] y)"
         "{ y = RotaryEmbedding <rotary_embedding_dim = 4> (x, c, s, p) }",
         {"x": Q, "c": COS[:, :2], "s": SIN[:, :2], "p": PLACES},
         (rotate(Q, COS[PLACES[0], :2], SIN[PLACES[0], :2]),), lambda use: bool(use.attribute("rotary_embedding_dim"))),
    Case("RotaryEmbedding", "without position_ids",
         "g (float[1,N,32] x, float[1,N,4] c, float[1,N,4] s) => (float[1,N,32] y)"
         "{ y = RotaryEmbedding <num_heads = 4> (x, c, s) }",
         {"x": merge(Q), "c": COS[None, 3:8], "s": SIN[None, 3:8]}, (merge(rotate(Q, COS[3:8], SIN[3:8])),),
         lambda use: not use.has(3)),
)  # fmt: skip


HELD, NEW = normal(1, 2, 6, 4), normal(1, 2, 3, 4)


def written(start: int) -> Array:
    array = HELD.copy()
    array[:, :, np.arange(start, start + 3) % 6] = NEW
    return array


_SCATTER = "g (float[1,2,6,4] a, float[1,2,N,4] b, int64[1] at) => (float[1,2,6,4] y)"
SCATTER = (
    Case("TensorScatter", "linear", f"{_SCATTER} {{ y = TensorScatter <axis = 2> (a, b, at) }}",
         {"a": HELD, "b": NEW, "at": np.array([2])}, (written(2),),
         lambda use: use.attribute("mode", "linear") == "linear", opset=24),
    Case("TensorScatter", "circular", f"{_SCATTER} {{ y = TensorScatter <axis = 2, mode = \"circular\"> (a, b, at) }}",
         {"a": HELD, "b": NEW, "at": np.array([5])}, (written(5),),
         lambda use: use.attribute("mode") == "circular", opset=24),
)  # fmt: skip

CASES = (*ATTENTION, *ROTARY, *SCATTER)
