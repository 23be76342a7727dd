# SPDX-License-Identifier: Apache-2.0
"""What exported models compute with: norms, activations, reductions, convolutions, stored weights."""

from __future__ import annotations

import math

import numpy as np

from ...backends.base import Array
from ..case import Case
from ..use import Use
from .attention import normal
from .contrib import ELEMENTS4, ELEMENTS8, SCALES, ZEROS4, X, literal, normed, weights

WIDE, SCALE, BIAS = normal(2, 3, 64), normal(64), normal(64)
TURNED = WIDE.astype(np.float64)
ERF = np.vectorize(math.erf)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def centred(x: Array) -> Array:
    return np.asarray((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5), np.float32)


def unary(operator: str, answer: Array, attributes: str = "", what: str = "", opset: int = 23) -> Case:
    graph = f"g (float[B,N,64] x) => (float[B,N,64] y) {{ y = {operator} {attributes} (x) }}"
    return Case(operator, what, graph, {"x": WIDE}, (np.asarray(answer, np.float32),), opset=opset)


def approximate(use: Use) -> bool:
    return bool(use.attribute("approximate", "none") == "tanh")


NORMS = (
    Case("RMSNormalization", "",
         "g (float[B,N,64] x, float[64] w) => (float[B,N,64] y)"
         "{ y = RMSNormalization <axis = -1, epsilon = 1e-5> (x, w) }",
         {"x": WIDE, "w": SCALE}, (normed(WIDE, SCALE),)),
    Case("LayerNormalization", "",
         "g (float[B,N,64] x, float[64] w, float[64] b) => (float[B,N,64] y)"
         "{ y = LayerNormalization <axis = -1, epsilon = 1e-5> (x, w, b) }",
         {"x": WIDE, "w": SCALE, "b": BIAS}, (centred(WIDE) * SCALE + BIAS,)),
    Case("GroupNormalization", "",
         "g (float[B,6,N] x, float[6] w, float[6] b) => (float[B,6,N] y)"
         "{ y = GroupNormalization <num_groups = 2, epsilon = 1e-5> (x, w, b) }",
         {"x": WIDE.reshape(2, 6, 32), "w": SCALE[:6], "b": BIAS[:6]},
         (centred(WIDE.reshape(2, 2, 96)).reshape(2, 6, 32) * SCALE[:6, None] + BIAS[:6, None],)),
)  # fmt: skip

ACTIVATIONS = (
    unary("Swish", TURNED * sigmoid(TURNED), opset=24),
    unary("Softplus", np.log1p(np.exp(TURNED))),
    unary("Erf", ERF(TURNED)),
    unary("HardSwish", TURNED * np.clip(TURNED / 6 + 0.5, 0, 1)),
    unary("Mish", TURNED * np.tanh(np.log1p(np.exp(TURNED)))),
    Case("Gelu", "", "g (float[B,N,64] x) => (float[B,N,64] y) { y = Gelu (x) }", {"x": WIDE},
         ((TURNED * (1 + ERF(TURNED / math.sqrt(2))) / 2).astype(np.float32),), lambda use: not approximate(use)),
    Case("Gelu", "approximate = tanh",
         'g (float[B,N,64] x) => (float[B,N,64] y) { y = Gelu <approximate = "tanh"> (x) }', {"x": WIDE},
         ((TURNED / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (TURNED + 0.044715 * TURNED**3)))).astype(np.float32),),
         approximate),
)  # fmt: skip

_REDUCE = "g (float[B,N,64] x) => (float[B,N] y) <int64[1] last = {-1}>"
REDUCTIONS = (
    Case("ReduceLogSumExp", "", f"{_REDUCE} {{ y = ReduceLogSumExp <keepdims = 0> (x, last) }}", {"x": WIDE},
         (np.log(np.exp(TURNED).sum(-1)).astype(np.float32),)),
    Case("ReduceL2", "", f"{_REDUCE} {{ y = ReduceL2 <keepdims = 0> (x, last) }}", {"x": WIDE},
         (np.sqrt((WIDE**2).sum(-1)),)),
    Case("Einsum", "a sum over one index",
         'g (float[B,N,64] x, float[64,M] w) => (float[B,N,M] y) { y = Einsum <equation = "bnk,km->bnm"> (x, w) }',
         {"x": WIDE, "w": WIDE[0].T}, (WIDE @ WIDE[0].T,)),
)  # fmt: skip

SIGNAL, KERNEL = normal(1, 3, 10), normal(4, 3, 3)
WINDOWS = np.lib.stride_tricks.sliding_window_view(np.pad(SIGNAL, ((0, 0), (0, 0), (2, 0))), 3, axis=2)
CONVOLVED = np.einsum("bcnk,ock->bon", WINDOWS, KERNEL)
STRETCHED = np.zeros((1, 3, 20 + 1), np.float32)
for _place in range(10):
    STRETCHED[:, :, 2 * _place : 2 * _place + 3] += SIGNAL[:, :, _place : _place + 1] * KERNEL[0]

CONVOLUTIONS = (
    Case("Conv", "of a signal, padded to the left",
         "g (float[B,3,N] x, float[4,3,3] w) => (float[B,4,N] y) { y = Conv <pads = [2, 0]> (x, w) }",
         {"x": SIGNAL, "w": KERNEL}, (CONVOLVED,), lambda use: use.rank(0) in (None, 3)),
    Case("ConvTranspose", "by groups, of a signal",
         "g (float[B,3,N] x, float[3,1,3] w) => (float[B,3,M] y)"
         "{ y = ConvTranspose <group = 3, strides = [2]> (x, w) }",
         {"x": SIGNAL, "w": KERNEL[0][:, None]}, (STRETCHED,), lambda use: use.rank(0) in (None, 3)),
)  # fmt: skip


def blocks(kind: str, elements: Array, zeros: Array | None) -> Case:
    """A matrix [8, 64] in blocks of 32 along its last axis, as bundles store them."""
    given = {"z": (kind.upper(), zeros)} if zeros is not None else {}
    middle = np.zeros((8, 2)) if zeros is None else zeros
    return Case(
        "DequantizeLinear", f"blocks of {kind}" + (", zero points" if zeros is not None else ""),
        f"g (float[M,64] x) => (float[M,8] y) <float[8,2] s = {literal(SCALES)}> {{"
        f" d = DequantizeLinear <axis = 1, block_size = 32> (w, s{', z' if given else ''})"
        " t = Transpose <perm = [1, 0]> (d) y = MatMul (x, t) }",
        {"x": X}, (X @ weights(elements, middle).T,),
        lambda use: bool(use.attribute("block_size", 0)) and use.dtype(0) in (None, TYPES[kind])
        and use.has(2) == (zeros is not None),
        constants={"w": (kind.upper(), elements), **given},
    )  # fmt: skip


TYPES = {"uint8": 2, "int8": 3, "uint4": 21, "int4": 22}
SIGNED4, SIGNED8 = ELEMENTS4.astype(np.int8) - 8, (ELEMENTS8.astype(np.int16) - 128).astype(np.int8)
ZEROS8 = (ZEROS4 * 15).astype(np.uint8)
STORED = (
    blocks("uint4", ELEMENTS4, ZEROS4),
    blocks("int4", SIGNED4, None),
    blocks("uint8", ELEMENTS8, ZEROS8),
    blocks("int8", SIGNED8, None),
    Case("DequantizeLinear", "one scale for each row",
         f"g (float[M,64] x) => (float[M,8] y) <int8[8,64] w = {literal(SIGNED8)},"
         f" float[8] s = {literal(SCALES[:, 0])}>"
         "{ d = DequantizeLinear <axis = 0> (w, s) t = Transpose <perm = [1, 0]> (d) y = MatMul (x, t) }",
         {"x": X}, (X @ (SIGNED8 * SCALES[:, :1]).T.astype(np.float32),),
         lambda use: not use.attribute("block_size", 0) and use.rank(1) in (None, 1)),
)  # fmt: skip

CASES = (*NORMS, *ACTIVATIONS, *REDUCTIONS, *CONVOLUTIONS, *STORED)
