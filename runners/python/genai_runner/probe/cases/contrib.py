# SPDX-License-Identifier: Apache-2.0
"""Operators of com.microsoft, which variants for ONNX Runtime and imported graphs use."""

from __future__ import annotations

import numpy as np

from ...backends.base import Array
from ..case import Case
from ..use import Use
from .attention import COS, SIN, attend, causal, merge, normal, rotate, split

DOMAIN = "com.microsoft"


SINKS = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
WIDE_COS, WIDE_SIN = (np.concatenate([table, table[:, ::-1]], 1) for table in (COS, SIN))


def gqa(graph: str) -> str:
    """A run of one new token or more after `past`, four query heads over two key heads of size 16, as text."""
    return (
        "g (float[B,N,64] q, float[B,N,32] k, float[B,N,32] v, float[B,2,P,16] pk, float[B,2,P,16] pv, int32[B] last,"
        " int32 total, float[16,8] c, float[16,8] s, float[4] sink)"
        " => (float[B,N,64] y, float[B,2,T,16] nk, float[B,2,T,16] nv) {"
        f"{graph} }}"
    )


def gqa_text(attributes: str = "", more: str = "") -> str:
    given = "q, k, v, pk, pv, last, total" + more
    heads = "num_heads = 4, kv_num_heads = 2" + attributes
    return gqa(f"y, nk, nv = com.microsoft.GroupQueryAttention <{heads}> ({given})")


def gqa_feeds(batch: int = 1, held: int = 5, new: int = 1) -> dict[str, Array]:
    rows = (normal(batch, new, 64), normal(batch, new, 32), normal(batch, new, 32))
    past = normal(batch, 2, held, 16), normal(batch, 2, held, 16)
    return {
        **dict(zip("qkv", rows, strict=True)), "pk": past[0], "pv": past[1], "c": WIDE_COS, "s": WIDE_SIN,
        "last": np.full(batch, held + new - 1, np.int32), "total": np.array(held + new, np.int32), "sink": SINKS,
    }  # fmt: skip


def gqa_answer(
    feeds: dict[str, Array],
    window: int | None = None,
    *,
    softcap: float = 0.0,
    rotary: bool = False,
    sink: bool = False,
) -> tuple[Array, Array, Array]:
    q, k, v = split(feeds["q"], 4), split(feeds["k"], 2), split(feeds["v"], 2)
    held, new = feeds["pk"].shape[2], q.shape[2]
    if rotary:
        q, k = (rotate(x, WIDE_COS[held : held + new], WIDE_SIN[held : held + new]) for x in (q, k))
    keys, values = np.concatenate([feeds["pk"], k], 2), np.concatenate([feeds["pv"], v], 2)
    allowed = causal(new, held + new)
    if window is not None:
        allowed = allowed & ~np.tril(allowed, held - window)
    sinks = SINKS[:, None, None] if sink else -np.inf
    return merge(attend(q, keys, values, allowed, sink=sinks, softcap=softcap)), keys, values


ONE, TWO, PROMPT = gqa_feeds(), gqa_feeds(2), gqa_feeds(held=0, new=6)


def several(use: Use) -> bool:
    """Whether the batch is known to be of more than one: the runner itself feeds requests one by one."""
    shape = use.shape(0)
    return bool(shape and shape[0] is not None and shape[0] > 1)


_GQA = f"{DOMAIN}.GroupQueryAttention"
GROUPED = (
    Case(_GQA, "one sequence", gqa_text(), ONE, gqa_answer(ONE)),
    Case(_GQA, "a prompt", gqa_text(), PROMPT, gqa_answer(PROMPT)),
    Case(_GQA, "several sequences", gqa_text().replace("B,", "2,").replace("[B]", "[2]"), TWO, gqa_answer(TWO),
         several),
    Case(_GQA, "softcap", gqa_text(", softcap = 0.5"), ONE, gqa_answer(ONE, softcap=0.5),
         lambda use: bool(use.attribute("softcap", 0.0))),
    Case(_GQA, "local_window_size", gqa_text(", local_window_size = 3"), ONE, gqa_answer(ONE, window=3),
         lambda use: use.attribute("local_window_size", -1) > 0),
    Case(_GQA, "local_window_size, a prompt", gqa_text(", local_window_size = 3"), PROMPT, gqa_answer(PROMPT, window=3),
         lambda use: use.attribute("local_window_size", -1) > 0),
    Case(_GQA, "do_rotary, a prompt", gqa_text(", do_rotary = 1", ", c, s"), PROMPT, gqa_answer(PROMPT, rotary=True),
         lambda use: bool(use.attribute("do_rotary", 0))),
    Case(_GQA, "head_sink", gqa_text("", ", , , , , sink"), ONE, gqa_answer(ONE, sink=True), lambda use: use.has(11)),
    Case(_GQA, "do_rotary", gqa_text(", do_rotary = 1", ", c, s"), ONE, gqa_answer(ONE, rotary=True),
         lambda use: bool(use.attribute("do_rotary", 0))),
)  # fmt: skip


X = normal(3, 64)
ELEMENTS4 = np.random.default_rng(3).integers(0, 16, (8, 64)).astype(np.uint8)
ELEMENTS8 = np.random.default_rng(4).integers(0, 256, (8, 64)).astype(np.uint8)
SCALES = np.abs(normal(8, 2)) / 16 + np.float32(0.01)
ZEROS4 = np.random.default_rng(6).integers(0, 16, (8, 2)).astype(np.uint8)


def weights(elements: Array, zeros: Array, scales: Array = SCALES) -> Array:
    """(q - zero) x scale of elements[N, K] in blocks of 32."""
    centred = elements.astype(np.float32) - np.repeat(zeros.astype(np.float32), 32, 1)
    return np.asarray(centred * np.repeat(scales, 32, 1), np.float32)


def pack(elements: Array) -> Array:
    """Two elements of four bits in a byte, the low half first."""
    return np.asarray(elements[:, ::2] | elements[:, 1::2] << 4, np.uint8)


def literal(array: Array) -> str:
    """The values of an initializer as ONNX text."""
    return "{" + ", ".join(str(value) for value in array.ravel().tolist()) + "}"


def matmul(bits: int, zeros: bool) -> str:
    elements = pack(ELEMENTS4) if bits == 4 else ELEMENTS8
    more = f", uint8[8] z = {literal(pack(ZEROS4))}" if zeros else ""
    return (
        f"g (float[M,64] x) => (float[M,8] y) <uint8[8,2,{4 * bits}] w = {literal(elements)},"
        f" float[16] s = {literal(SCALES)}{more}>"
        f"{{ y = com.microsoft.MatMulNBits <K = 64, N = 8, bits = {bits}, block_size = 32> (x, w, s{', z' * zeros}) }}"
    )


MIDDLE4, MIDDLE8 = np.full((8, 2), 8), np.full((8, 2), 128)
_NBITS = f"{DOMAIN}.MatMulNBits"
_GATHER = f"{DOMAIN}.GatherBlockQuantized"
QUANTISED = (
    Case(_NBITS, "4 bits", matmul(4, False), {"x": X}, (X @ weights(ELEMENTS4, MIDDLE4).T,),
         lambda use: use.attribute("bits", 4) == 4),
    Case(_NBITS, "4 bits with zero points", matmul(4, True), {"x": X}, (X @ weights(ELEMENTS4, ZEROS4).T,),
         lambda use: use.attribute("bits", 4) == 4 and use.has(3)),
    Case(_NBITS, "8 bits", matmul(8, False), {"x": X}, (X @ weights(ELEMENTS8, MIDDLE8, SCALES).T,),
         lambda use: use.attribute("bits", 4) == 8),
    Case(_GATHER, "4 bits",
         f"g (int64[N] i) => (float[N,64] y) <uint8[8,32] w = {literal(pack(ELEMENTS4))},"
         f" float[8,2] s = {literal(SCALES)}, uint8[8,1] z = {literal(pack(ZEROS4))}>"
         "{ y = com.microsoft.GatherBlockQuantized <bits = 4, block_size = 32, gather_axis = 0, quantize_axis = 1>"
         " (w, i, s, z) }",
         {"i": np.array([7, 0, 3])}, (weights(ELEMENTS4, ZEROS4)[[7, 0, 3]],)),
)  # fmt: skip


def normed(x: Array, scale: Array, epsilon: float = 1e-5) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale, np.float32)


SCALE, SKIP, A, B = normal(64), normal(1, 3, 64), normal(1, 3, 64), normal(1, 64, 5)
TURNED, PLACES = normal(1, 3, 32), np.array([[2, 3, 7]])
TOKENS, ROUTES, UP, DOWN = normal(4, 32), normal(4, 3), normal(3, 64, 32) / 4, normal(3, 32, 64) / 4


def experts(up: Array, down: Array) -> Array:
    """Each token by its two likeliest experts, weighted by the softmax of their two scores."""
    y = np.zeros((len(TOKENS), down.shape[1]), np.float32)
    for row, scores in enumerate(ROUTES):
        best = np.argsort(-scores)[:2]
        share = np.exp(scores[best]) / np.exp(scores[best]).sum()
        for expert, part in zip(best, share, strict=True):
            y[row] += part * (down[expert] @ np.maximum(up[expert] @ TOKENS[row], 0))
    return y


_EXPERTS = 'k = 2, activation_type = "relu", normalize_routing_weights = 1'
UP4, DOWN4 = (np.random.default_rng(seed).integers(0, 16, dims) for seed, dims in ((1, (3, 64, 32)), (2, (3, 32, 64))))
UP_SCALE, DOWN_SCALE = (np.abs(normal(3, rows)) / 64 + np.float32(0.01) for rows in (64, 32))


def packed(elements: Array) -> str:
    return literal((elements[..., ::2] | elements[..., 1::2] << 4).astype(np.uint8))


FUSED = (
    Case(f"{DOMAIN}.SkipSimplifiedLayerNormalization", "",
         "g (float[1,N,64] x, float[1,N,64] skip, float[64] w) => (float[1,N,64] y, float[1,N,64] sum)"
         "{ y, , , sum = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 1e-5> (x, skip, w) }",
         {"x": A, "skip": SKIP, "w": SCALE}, (normed(A + SKIP, SCALE), A + SKIP)),
    Case("SimplifiedLayerNormalization", "",
         "g (float[1,N,64] x, float[64] w) => (float[1,N,64] y)"
         "{ y = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5> (x, w) }",
         {"x": A, "w": SCALE}, (normed(A, SCALE),)),
    Case(f"{DOMAIN}.FusedMatMul", "alpha, transB",
         "g (float[1,N,64] a, float[1,5,64] b) => (float[1,N,5] y)"
         "{ y = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (a, b) }",
         {"a": A, "b": B.swapaxes(1, 2)}, (A @ B / 2,)),
    Case(f"{DOMAIN}.RotaryEmbedding", "",
         "g (float[1,N,32] x, int64[1,N] p, float[16,4] c, float[16,4] s) => (float[1,N,32] y)"
         "{ y = com.microsoft.RotaryEmbedding"
         " <num_heads = 4, rotary_embedding_dim = 8, interleaved = 0> (x, p, c, s) }",
         {"x": TURNED, "p": PLACES, "c": COS, "s": SIN},
         (merge(rotate(split(TURNED, 4), COS[PLACES[0]], SIN[PLACES[0]])),)),
    Case(f"{DOMAIN}.MoE", "",
         "g (float[N,32] x, float[N,3] r, float[3,64,32] up, float[3,32,64] down) => (float[N,32] y)"
         f"{{ y = com.microsoft.MoE <{_EXPERTS}> (x, r, up, , down) }}",
         {"x": TOKENS, "r": ROUTES, "up": UP, "down": DOWN}, (experts(UP, DOWN),)),
    Case(f"{DOMAIN}.QMoE", "4 bits",
         f"g (float[N,32] x, float[N,3] r) => (float[N,32] y) <uint8[3,64,16] up = {packed(UP4)},"
         f" uint8[3,32,32] down = {packed(DOWN4)}, float[3,64] us = {literal(UP_SCALE)},"
         f" float[3,32] ds = {literal(DOWN_SCALE)}>"
         f"{{ y = com.microsoft.QMoE <{_EXPERTS}, expert_weight_bits = 4> (x, r, up, us, , down, ds) }}",
         {"x": TOKENS, "r": ROUTES},
         (experts((UP4 - 8) * UP_SCALE[..., None], (DOWN4 - 8) * DOWN_SCALE[..., None]),),
         lambda use: use.attribute("expert_weight_bits", 4) == 4),
)  # fmt: skip

CASES = (*GROUPED, *QUANTISED, *FUSED)
