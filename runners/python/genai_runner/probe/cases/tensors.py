# SPDX-License-Identifier: Apache-2.0
"""Shapes, indices and constants: where engines go wrong without a word."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from ...backends.base import Array
from ..case import Case
from ..use import Use
from .attention import normal
from .resizing import antialiased

PICTURE = normal(1, 2, 9, 12)


def antialias(mode: str) -> Callable[[Use], bool]:
    return lambda use: bool(use.attribute("antialias", 0)) and use.attribute("mode", "nearest") == mode


def runtime_repeats(rank: int) -> Callable[[Use], bool]:
    return lambda use: not use.is_constant(1) and use.rank(0) in (None, rank)


def repeated(rank: int, repeats: list[int]) -> Case:
    dims = ",".join("ABCD"[:rank])
    x = normal(*range(2, 2 + rank))
    graph = f"g (float[{dims}] x, int64[{rank}] r) => (float[{dims.lower()}] y) {{ y = Tile (x, r) }}"
    touches = runtime_repeats(rank)
    return Case("Tile", f"repeats known at run time, rank {rank}", graph, {"x": x, "r": np.array(repeats)},
                (np.tile(x, repeats),), touches)  # fmt: skip


def resized(mode: str, sizes: tuple[int, int]) -> Case:
    graph = (
        f"g (float[1,2,H,W] x) => (float[1,2,h,w] y) <int64[2] size = {{{sizes[0]}, {sizes[1]}}}>"
        f'{{ y = Resize <mode = "{mode}", antialias = 1, axes = [2, 3]> (x, , , size) }}'
    )
    return Case("Resize", f"antialias, {mode}", graph, {"x": PICTURE}, (antialiased(PICTURE, sizes, mode),),
                antialias(mode))  # fmt: skip


RESIZING = (resized("linear", (4, 5)), resized("cubic", (5, 4)))
TILING = (repeated(1, [3]), repeated(2, [2, 3]), repeated(3, [2, 1, 3]), repeated(4, [1, 2, 1, 3]))

_LARGE = (1 << 31, -(1 << 31) - 1)
_MOVES = ("Concat", "Unsqueeze", "Squeeze", "Reshape", "Identity", "Cast")


def large_constant(use: Use) -> bool:
    """Whether an input is a constant that does not fit 32 bits and counts; the ends of Slice may be any such."""
    return any(_is_large(use, index) and _counts(use, use.node, index) for index in range(len(use.node.input)))


def _is_large(use: Use, index: int) -> bool:
    value = use.constant(index) if use.is_constant(index) else None
    if value is None or value.dtype not in (np.int64, np.uint64, np.uint32) or not value.size:
        return False
    return bool(value.max() >= _LARGE[0] or value.min() <= _LARGE[1])


def _counts(use: Use, node: onnx.NodeProto, index: int) -> bool:
    if node.op_type == "Slice":
        return index not in (1, 2)
    if node.op_type not in _MOVES:
        return True
    after = [user for name in node.output for user in use.scope.consumers.get(name, [])]
    return not after or any(_counts(use, *user) for user in after)


def empty_constant(use: Use) -> bool:
    """Whether an input is a constant without elements that is read as a tensor, not as a list of sizes."""
    if use.node.op_type == "Resize":  # left out in the way of old exporters
        return False
    return any(
        use.is_constant(index) and 0 in use.scope.constants[name].dims for index, name in enumerate(use.node.input)
    )


def backwards(steps: Array | None) -> bool:
    return steps is None or bool((steps < 0).any())


BIG = 3_000_000_007
INTEGERS = (
    Case("*", "int64 constants beyond 32 bits",
         f"g (int64[N] x) => (int64[N] y) <int64 c = {{{BIG}}}> {{ y = Add (x, c) }}",
         {"x": np.array([1, 5])}, (np.array([BIG + 1, BIG + 5]),), large_constant),
    Case("*", "uint64 constants beyond 32 bits",
         f"g (uint64[N] x) => (uint64[N] y) <uint64 c = {{{BIG}}}> {{ y = Add (x, c) }}",
         {"x": np.array([1, 5], np.uint64)}, (np.array([BIG + 1, BIG + 5], np.uint64),), large_constant),
    Case("*", "int64 products beyond 32 bits",
         "g (int64[N] x) => (int64[N] y) { y = Mul (x, x) }",
         {"x": np.array([70_000, 3])}, (np.array([4_900_000_000, 9]),), None),
    Case("*", "int64 inputs beyond 32 bits",
         "g (int64[N] x) => (int64[N] y) <int64 c = {1000}> { y = Div (x, c) }",
         {"x": np.array([BIG * 1000, 9000])}, (np.array([BIG, 9]),), None),
    Case("Slice", "ends of 2^63 - 1",
         "g (int64[N,M] x) => (int64[N,m] y)"
         " <int64[1] a = {1}, int64[1] e = {9223372036854775807}, int64[1] axis = {1}>"
         "{ y = Slice (x, a, e, axis) }",
         {"x": np.arange(6).reshape(2, 3)}, (np.arange(6).reshape(2, 3)[:, 1:],),
         lambda use: use.is_constant(2) and _is_large(use, 2)),
    Case("Slice", "negative steps",
         "g (float[N,M] x) => (float[N,M] y) <int64[1] a = {-1}, int64[1] e = {-9223372036854775807},"
         " int64[1] axis = {1}, int64[1] step = {-1}> { y = Slice (x, a, e, axis, step) }",
         {"x": PICTURE[0, 0]}, (PICTURE[0, 0, :, ::-1],),
         lambda use: use.has(4) and backwards(use.constant(4))),
    Case("*", "constants without elements",
         "g (float[1,2,N,4] x) => (float[1,2,T,4] y) <float[1,2,0,4] none = {}> { y = Concat <axis = 2> (none, x) }",
         {"x": PICTURE[:, :, :3, :4]}, (PICTURE[:, :, :3, :4],), empty_constant),
    Case("Concat", "with an input without elements",
         "g (float[1,2,P,4] a, float[1,2,N,4] x) => (float[1,2,T,4] y) { y = Concat <axis = 2> (a, x) }",
         {"a": np.zeros((1, 2, 0, 4), np.float32), "x": PICTURE[:, :, :3, :4]}, (PICTURE[:, :, :3, :4],), None),
)  # fmt: skip


def integers(use: Use) -> bool:
    """Where equal values are the rule. What is not known is float: routers of experts, mostly."""
    return use.dtype(0) in [onnx.TensorProto.DataType.Value(name) for name in ("INT32", "INT64", "UINT8")]


TIED = np.array([[2.0, 7.0, 7.0, 1.0, 7.0, 2.0]], np.float32)
ROWS = normal(70, 3)
ORDER = np.random.default_rng(8).integers(-3, 3, (70, 3))
SELECTING = (
    Case("TopK", "different values",
         "g (float[N,M] x) => (float[N,k] v, int64[N,k] i) <int64[1] k = {3}> { v, i = TopK (x, k) }",
         {"x": np.array([[0.5, 3.0, -1.0, 2.0]], np.float32)},
         (np.array([[3.0, 2.0, 0.5]], np.float32), np.array([[1, 3, 0]]))),
    Case("TopK", "equal values, integers: the lowest index first",
         "g (int64[N,M] x) => (int64[N,k] v, int64[N,k] i) <int64[1] k = {4}> { v, i = TopK (x, k) }",
         {"x": TIED.astype(np.int64)}, (np.array([[7, 7, 7, 2]]), np.array([[1, 2, 4, 0]])), integers),
    Case("TopK", "equal values: the lowest index first",
         "g (float[N,M] x) => (float[N,k] v, int64[N,k] i) <int64[1] k = {4}> { v, i = TopK (x, k) }",
         {"x": TIED}, (np.array([[7, 7, 7, 2]], np.float32), np.array([[1, 2, 4, 0]])), None),
    Case("ArgMax", "equal values: the lowest index",
         "g (float[N,M] x) => (int64[N] i) { i = ArgMax <axis = -1, keepdims = 0> (x) }",
         {"x": TIED}, (np.array([1]),), None),
    Case("GatherElements", "axis = -1, more than 64 rows, negative indices",
         "g (float[N,M] x, int64[N,M] i) => (float[N,M] y) { y = GatherElements <axis = -1> (x, i) }",
         {"x": ROWS, "i": ORDER}, (np.take_along_axis(ROWS, ORDER, -1),)),
    Case("GatherND", "batch_dims = 1",
         "g (float[N,M] x, int64[N,1] i) => (float[N] y) { y = GatherND <batch_dims = 1> (x, i) }",
         {"x": ROWS[:4], "i": np.array([[2], [0], [1], [1]])}, (ROWS[np.arange(4), [2, 0, 1, 1]],)),
    Case("ScatterND", "", "g (float[N,M] x, int64[K,1] i, float[K,M] u) => (float[N,M] y) { y = ScatterND (x, i, u) }",
         {"x": ROWS[:4], "i": np.array([[2], [0]]), "u": ROWS[10:12]},
         (np.stack([ROWS[11], ROWS[1], ROWS[10], ROWS[3]]),), lambda use: use.attribute("reduction", "none") == "none"),
    Case("ScatterND", "reduction = add, an index twice",
         "g (float[N,M] x, int64[K,1] i, float[K,M] u) => (float[N,M] y)"
         '{ y = ScatterND <reduction = "add"> (x, i, u) }',
         {"x": ROWS[:2], "i": np.array([[1], [1]]), "u": ROWS[10:12]},
         (np.stack([ROWS[0], ROWS[1] + ROWS[10] + ROWS[11]]),), lambda use: use.attribute("reduction") == "add"),
    Case("ScatterElements", "axis = 1",
         "g (float[N,M] x, int64[N,K] i, float[N,K] u) => (float[N,M] y) { y = ScatterElements <axis = 1> (x, i, u) }",
         {"x": ROWS[:2], "i": np.array([[2], [0]]), "u": ROWS[10:12, :1]},
         (np.stack([[*ROWS[0, :2], ROWS[10, 0]], [ROWS[11, 0], *ROWS[1, 1:]]]),),
         lambda use: use.attribute("reduction", "none") == "none"),
    Case("CumSum", "along the last axis",
         "g (float[N,M] x) => (float[N,M] y) <int64 axis = {-1}> { y = CumSum (x, axis) }",
         {"x": ROWS}, (ROWS.cumsum(-1),), lambda use: not use.attribute("exclusive", 0)),
    Case("Trilu", "upper = 0, k known at run time",
         "g (float[N,M] x, int64 k) => (float[N,M] y) { y = Trilu <upper = 0> (x, k) }",
         {"x": ROWS[:3], "k": np.array(-1)}, (np.tril(ROWS[:3], -1),), lambda use: not use.attribute("upper", 1)),
    Case("Range", "", "g (int64 a, int64 b) => (int64[N] y) <int64 d = {2}> { y = Range (a, b, d) }",
         {"a": np.array(3), "b": np.array(10)}, (np.arange(3, 10, 2),), lambda use: use.dtype(0) in (None, 7)),
    Case("Split", "num_outputs, of uneven length",
         "g (float[N,7] x) => (float[N,3] a, float[N,3] b, float[N,1] c)"
         "{ a, b, c = Split <axis = 1, num_outputs = 3> (x) }",
         {"x": PICTURE[0, 0, :, :7]},
         (PICTURE[0, 0, :, :3], PICTURE[0, 0, :, 3:6], PICTURE[0, 0, :, 6:7]),
         lambda use: use.attribute("num_outputs") is not None),
)  # fmt: skip

CASES = (*RESIZING, *TILING, *INTEGERS, *SELECTING)
