# SPDX-License-Identifier: Apache-2.0
"""Numbers that are not float32: bytes, bits, doubles, and how constants of such types are stored."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx

from ...backends.base import Array
from ..case import Case
from ..use import Use
from .attention import normal

TYPES = onnx.TensorProto.DataType
BYTES = np.array([0xA5, 0x3C, 0xFF], np.uint8)
WORDS = BYTES.astype(np.uint32)
X = normal(4)


def of(use: Use, *kinds: str) -> bool:
    """Whether the first input is, or may be, of one of these types."""
    return use.dtype(0) in (None, *(TYPES.Value(kind) for kind in kinds))


def certainly(use: Use, *kinds: str) -> bool:
    """For operators that are seldom given such types: what is not known is float."""
    return use.dtype(0) in [TYPES.Value(kind) for kind in kinds]


def shifts(kind: str, direction: str, answer: Array) -> Case:
    graph = (
        f"g ({kind}[N] x) => ({kind}[N] y) <{kind} n = {{4}}>"
        f'{{ y = BitShift <direction = "{direction.upper()}"> (x, n) }}'
    )
    x = answer.dtype.type(BYTES)
    return Case("BitShift", f"{direction}, of {kind}", graph, {"x": x}, (answer,),
                lambda use: of(use, kind.upper()) and use.attribute("direction") == direction.upper())  # fmt: skip


def masks(kind: str) -> Case:
    graph = f"g ({kind}[N] x) => ({kind}[N] y) <{kind} n = {{15}}> {{ y = BitwiseAnd (x, n) }}"
    answer = (BYTES & 15).astype(kind)
    return Case("BitwiseAnd", f"of {kind}", graph, {"x": BYTES.astype(kind)}, (answer,),
                lambda use: of(use, kind.upper()))  # fmt: skip


BITS = (
    shifts("uint8", "right", BYTES >> 4),
    shifts("uint8", "left", BYTES << np.uint8(4)),
    shifts("uint32", "right", WORDS >> 4),
    shifts("uint32", "left", WORDS << 4),
    shifts("uint64", "right", BYTES.astype(np.uint64) >> np.uint64(4)),
    *map(masks, ("uint8", "int32", "uint32", "int64")),
)  # fmt: skip

SMALL = ("UINT8", "INT8")
INTEGERS = (
    Case("Div", "of bytes", "g (uint8[N] x) => (uint8[N] y) <uint8 n = {16}> { y = Div (x, n) }",
         {"x": BYTES}, (BYTES // 16,), lambda use: certainly(use, *SMALL)),
    Case("*", "sums and differences of bytes wrap around",
         "g (uint8[N] x) => (uint8[N] y, uint8[N] z) <uint8 n = {200}> { y = Add (x, n) z = Sub (x, n) }",
         {"x": BYTES}, (BYTES + np.uint8(200), BYTES - np.uint8(200)),
         lambda use: use.operator in ("Add", "Sub", "Mul") and certainly(use, *SMALL)),
    Case("Div", "of negative integers, towards zero",
         "g (int64[N] x) => (int64[N] y) <int64 n = {2}> { y = Div (x, n) }",
         {"x": np.array([-7, 7, -8])}, (np.array([-3, 3, -4]),), lambda use: certainly(use, "INT32", "INT64")),
    Case("Mod", "of negative integers",
         "g (int64[N] x) => (int64[N] y) <int64 c = {5}> { y = Mod (x, c) }",
         {"x": np.array([-7, 7, -5])}, (np.array([3, 2, 0]),),
         lambda use: not use.attribute("fmod", 0) and of(use, "INT32", "INT64")),
)  # fmt: skip

CASTS = (
    Case("Cast", "bfloat16 to float", "g (float[N] x) => (float[N] y) { d = Cast <to = 1> (w) y = Mul (x, d) }",
         {"x": X}, (X * np.array([1.5, -2.0, 0.25, 96.0], np.float32),),
         lambda use: use.dtype(0) == TYPES.Value("BFLOAT16"), constants={"w": ("BFLOAT16", [1.5, -2.0, 0.25, 96.0])}),
    Case("Cast", "float16 to float", "g (float[N] x) => (float[N] y) { d = Cast <to = 1> (w) y = Mul (x, d) }",
         {"x": X}, (X * np.array([1.5, -2.0, 0.25, 96.0], np.float32),),
         lambda use: use.dtype(0) == TYPES.Value("FLOAT16"), constants={"w": ("FLOAT16", [1.5, -2.0, 0.25, 96.0])}),
    Case("Cast", "float to int64 drops the fraction",
         "g (float[N] x) => (int64[N] y) { y = Cast <to = 7> (x) }",
         {"x": np.array([1.9, -1.9, 2.5], np.float32)}, (np.array([1, -1, 2]),),
         lambda use: of(use, "FLOAT") and use.attribute("to") == TYPES.Value("INT64")),
    Case("Cast", "int64 to bool", "g (int64[N] x) => (bool[N] y) { y = Cast <to = 9> (x) }",
         {"x": np.array([256, 0, -1])}, (np.array([True, False, True]),),
         lambda use: of(use, "INT64") and use.attribute("to") == TYPES.Value("BOOL")),
)  # fmt: skip


def spelt(kind: str) -> Case:
    """Constants of 16 bits may be stored as bytes, as all in a bundle's shards are, or as a list of numbers."""
    bits = np.array([1.5, -2.0, 0.25], ml_dtypes.bfloat16 if kind == "bfloat16" else np.float16).view(np.uint16)
    text = ", ".join(map(str, bits.tolist()))
    graph = f"g (float[N] x) => (float[N] y) <{kind}[3] w = {{{text}}}> {{ d = Cast <to = 1> (w) y = Mul (x, d) }}"

    def touches(use: Use) -> bool:
        found = [use.scope.constants[name] for name in use.node.input if name in use.scope.constants]
        return any(one.data_type == TYPES.Value(kind.upper()) and len(one.int32_data) > 0 for one in found)

    return Case("*", f"{kind} constants stored as numbers", graph, {"x": X[:3]},
                (X[:3] * np.array([1.5, -2.0, 0.25], np.float32),), touches)  # fmt: skip


SPELT = (spelt("bfloat16"), spelt("float16"))

_TINY = np.array([1.0 + 2.0**-40, 2.0])
DOUBLES = (
    Case("*", "double keeps more digits than float",
         "g (double[N] x) => (double[N] y) <double one = {1.0}, double many = {1099511627776.0}>"
         "{ d = Sub (x, one) y = Mul (d, many) }",
         {"x": _TINY}, ((_TINY - 1) * 2.0**40,), None),
)  # fmt: skip

CASES = (*BITS, *INTEGERS, *CASTS, *SPELT, *DOUBLES)
