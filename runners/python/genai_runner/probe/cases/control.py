# SPDX-License-Identifier: Apache-2.0
"""Loops, branches, functions of a model's own, and texts."""

from __future__ import annotations

import numpy as np

from ..case import Case
from ..use import Use
from .attention import normal

START, STEPS = normal(1, 2), normal(3, 2)
RUNNING = np.cumsum(STEPS, 0) + START


def collects(use: Use) -> bool:
    """Whether a Loop stacks a value of each iteration, beside what it carries."""
    return len(use.node.output) > max(0, len(use.node.input) - 2)


def from_nothing(use: Use) -> bool:
    return any(use.is_constant(index) and 0 in (use.shape(index) or ()) for index in range(len(use.node.input)))


LOOP = "int64 i, bool go, float[1,2] held"
LOOPS = (
    Case("Loop", "carried values",
         "g (int64 n, float[1,2] x) => (float[1,2] y) <bool on = {1}> {"
         f" y = Loop (n, on, x) <body = b ({LOOP}) => (bool on2, float[1,2] next)"
         " { on2 = Identity (go) next = Add (held, held) }> }",
         {"n": np.array(3), "x": START}, (START * 8,), lambda use: not collects(use)),
    Case("Loop", "a condition that ends it",
         "g (int64 n, float[1,2] x) => (float[1,2] y) <bool on = {1}, int64 last = {1}> {"
         f" y = Loop (n, on, x) <body = b ({LOOP}) => (bool on2, float[1,2] next)"
         " { on2 = Less (i, last) next = Add (held, held) }> }",
         {"n": np.array(9), "x": START}, (START * 4,), lambda use: not collects(use)),
    Case("Loop", "a carried value that grows",
         "g (int64 n, float[1,K] x) => (float[1,L] y) <bool on = {1}> {"
         " y = Loop (n, on, x) <body = b (int64 i, bool go, float[1,K] held) => (bool on2, float[1,L] next)"
         " { on2 = Identity (go) next = Concat <axis = 1> (held, held) }> }",
         {"n": np.array(2), "x": START}, (np.tile(START, 4),), lambda use: len(use.node.input) > 2),
    Case("Loop", "a carried value that grows from a constant without elements",
         "g (int64 n, float[2,1] x) => (float[2,L] y) <bool on = {1}, float[2,0] none = {}> {"
         " y = Loop (n, on, none) <body = b (int64 i, bool go, float[2,K] held) => (bool on2, float[2,L] next)"
         " { on2 = Identity (go) next = Concat <axis = 1> (held, x) }> }",
         {"n": np.array(3), "x": START.T}, (np.tile(START.T, 3),),
         from_nothing),
    Case("Loop", "scan outputs",
         "g (int64 n, float[1,2] x) => (float[1,2] y, float[T,1,2] all) <bool on = {1}> {"
         f" y, all = Loop (n, on, x) <body = b ({LOOP}) => (bool on2, float[1,2] next, float[1,2] seen)"
         " { on2 = Identity (go) next = Add (held, held) seen = Identity (held) }> }",
         {"n": np.array(3), "x": START}, (START * 8, np.stack([START, START * 2, START * 4])), collects),
    Case("Loop", "scan outputs that are scalars",
         "g (int64 n, int64 x) => (int64 y, int64[T] all) <bool on = {1}> {"
         " y, all = Loop (n, on, x) <body = b (int64 i, bool go, int64 held) => (bool on2, int64 next, int64 seen)"
         " { on2 = Identity (go) next = Add (held, held) seen = Identity (i) }> }",
         {"n": np.array(3), "x": np.array(5)}, (np.array(40), np.array([0, 1, 2])), collects),
    Case("Scan", "",
         "g (float[1,2] x, float[T,2] steps) => (float[1,2] y, float[T,1,2] all) {"
         " y, all = Scan (x, steps) <num_scan_inputs = 1, body = b (float[1,2] held, float[2] step)"
         " => (float[1,2] next, float[1,2] seen) { next = Add (held, step) seen = Identity (next) }> }",
         {"x": START, "steps": STEPS}, (RUNNING[-1:], RUNNING[:, None])),
    Case("If", "", "g (bool c, float[1,2] x) => (float[1,2] y) {"
         " y = If (c) <then_branch = a () => (float[1,2] t) { t = Add (x, x) },"
         " else_branch = b () => (float[1,2] e) { e = Neg (x) }> }",
         {"c": np.array(False), "x": START}, (-START,)),
    Case("If", "branches of different shapes", "g (bool c, float[1,2] x) => (float[K,2] y) {"
         " y = If (c) <then_branch = a () => (float[1,2] t) { t = Identity (x) },"
         " else_branch = b () => (float[2,2] e) { e = Concat <axis = 0> (x, x) }> }",
         {"c": np.array(False), "x": START}, (np.tile(START, (2, 1)),)),
)  # fmt: skip


def calls(use: Use) -> bool:
    return (use.node.domain, use.node.op_type) in use.scope.functions


FUNCTIONS = (
    Case("*", "functions of the model",
         'g (float[N] x) => (float[N] y) { y = probe.Twice <by = 3.0> (x) } <domain: "probe", opset_import: ["" : 23]>'
         " Twice <by> (a) => (b) { c = Constant <value_float : float = @by> () b = Mul (a, c) }",
         {"x": START[0]}, (START[0] * 3,), calls),
)  # fmt: skip


_WORDS = 'string[3] words = {"a b", "c", "d e"}, string[1] more = {"!"}'
_WORD = f"g (int64[N] i) => (bool[N] y) <{_WORDS}, string[1] "
INDEX = {"i": np.array([2, 0])}
TEXTS = (
    Case("StringConcat", "",
         _WORD + 'other = {"d e!"}> { w = Gather (words, i) x = StringConcat (w, more) y = Equal (x, other) }',
         INDEX, (np.array([True, False]),)),
    Case("StringSplit", "",
         f"g (int64[N] i) => (int64[N] y) <{_WORDS}>"
         '{ w = Gather (words, i) x, y = StringSplit <delimiter = " "> (w) }',
         {"i": np.array([2, 1])}, (np.array([2, 1]),)),
    Case("RegexFullMatch", "",
         f"g (int64[N] i) => (bool[N] y) <{_WORDS}>"
         '{ w = Gather (words, i) y = RegexFullMatch <pattern = "[a-c ]+"> (w) }',
         INDEX, (np.array([False, True]),)),
)  # fmt: skip

CASES = (*LOOPS, *FUNCTIONS, *TEXTS)
