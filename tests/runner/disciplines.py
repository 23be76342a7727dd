# SPDX-License-Identifier: Apache-2.0
"""One layer of attention over tables, in every way of keeping its keys and values; and the same in NumPy, at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.tiny import bundle, model

Floats = NDArray[np.float32]

HEADS, SIZE, WORDS, PLACES = 2, 8, 16, 40
IDS = [3, 9, 1, 14, 7, 7, 2, 11, 5, 0, 15, 8, 4, 6, 13, 10, 12, 3]
RUNS = {"one by one": [1] * 18, "at once": [18], "prompt first": [11, 1, 1, 1, 1, 1, 1, 1], "pieces": [4, 3, 5, 6]}
"""A sequence, and ways of cutting it into runs."""

_random = np.random.default_rng(11)


def spans(counts: list[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for count in counts:
        yield start, start + count
        start += count


def table(rows: int) -> Floats:
    return _random.standard_normal((rows, HEADS * SIZE)).astype(np.float32)


QUERIES, KEYS, VALUES, TURNS = table(WORDS), table(WORDS), table(WORDS), table(PLACES)


def literal(name: str, array: Floats) -> str:
    dims, values = ",".join(map(str, array.shape)), ", ".join(map(str, array.ravel().tolist()))
    return f"float[{dims}] {name} = {{{values}}}"


TABLES = ", ".join(literal(*one) for one in [("tq", QUERIES), ("tk", KEYS), ("tv", VALUES), ("tp", TURNS)])
NUMBERS = """int64[4] heads = {0, 0, 2, 8}, int64[4] slot = {1, 1, -1, 1}, int64[2] column = {-1, 1},
 int64 zero = {0}, int64 one = {1}, int64 five = {5}, int64 two = {2}"""
PROJECT = """
 qs = Gather (tq, ids)   words = Gather (tk, ids)   turns = Gather (tp, positions)   ks = Add (words, turns)
 vs = Gather (tv, ids)   qh = Reshape (qs, heads)   kh = Reshape (ks, heads)   vh = Reshape (vs, heads)
 q = Transpose <perm = [0, 2, 1, 3]> (qh)   k = Transpose <perm = [0, 2, 1, 3]> (kh)
 v = Transpose <perm = [0, 2, 1, 3]> (vh)   at = Reshape (positions, column)
"""
HIDDEN = """
 rest = Mod (places, five)   hidden = Equal (rest, two)   shown = Not (hidden)   itself = Equal (places, at)
 allowed = Or (shown, itself)
"""
"""Of a row of places: every fifth one is seen by nobody but itself, beside what causality hides."""

WRITE = """
 spot = Reshape (spots, slot)   wide = Shape (k)   index = Expand (spot, wide)
 nk = ScatterElements <axis = 2> (pk, index, k)   nv = ScatterElements <axis = 2> (pv, index, v)
"""


def decoder(ports: str, length: str, body: str) -> str:
    past = f"float[1,2,{length},8] pk, float[1,2,{length},8] pv"
    after = "T" if length == "P" else length
    return (
        '<ir_version: 10, opset_import: ["" : 24]>\n'
        f"decoder (int64[1,N] ids, int64[1,N] positions, {ports}{past})"
        f" => (float[1,2,N,8] y, float[1,2,{after},8] nk, float[1,2,{after},8] nv)\n"
        f"<{TABLES}, {NUMBERS}> {{ {PROJECT} {body} }}"
    )


GROWING = decoder(
    "int64 total, ", "P",
    f"places = Range (zero, total, one) {HIDDEN} y, nk, nv = Attention <is_causal = 1> (q, k, v, allowed, pk, pv)",
)  # fmt: skip

CAUSAL = "past = LessOrEqual (places, at)   mask = And (allowed, past)   y = Attention (q, nk, nv, mask)"
BUFFER = f"""
 size = Shape <start = 2, end = 3> (pk)   sized = Squeeze (size)   places = Range (zero, sized, one)
 spots = Identity (positions)
 {WRITE} {HIDDEN} {CAUSAL}
"""
"""Writes with a standard operator at the positions, into a buffer of any length."""


def scattered(capacity: int) -> str:
    return decoder(
        "int64[1] start, int64[1] total, ", str(capacity),
        f"""
        until = Squeeze (total)   end = Add (until, zero)   sizes = Shape <start = 2, end = 3> (pk)
        sized = Squeeze (sizes)   places = Range (zero, sized, one) {HIDDEN}
        nk = TensorScatter <axis = 2> (pk, k, start)   nv = TensorScatter <axis = 2> (pv, v, start)
        y = Attention <is_causal = 1> (q, nk, nv, allowed, , , total)
        """,
    )  # fmt: skip


def ring(capacity: int, window: int, *, operator: bool) -> str:
    """A slot holds the last position that is congruent to it; `operator`: written by TensorScatter."""
    write = (
        """nk = TensorScatter <axis = 2, mode = "circular"> (pk, k, start)
        nv = TensorScatter <axis = 2, mode = "circular"> (pv, v, start)"""
        if operator
        else f"used = Identity (start)   spots = Mod (positions, around) {WRITE}"
    )
    return decoder(
        f"int64[1] start, int64 last, int64[1,{capacity}] filled, ", str(capacity),
        f"""
        around = Constant <value_int = {capacity}> ()   width = Constant <value_int = {window}> () {write}
        slots = Range (zero, around, one)   back = Sub (last, slots)   turned = Mod (back, around)
        held = Sub (last, turned)   old = Sub (at, width)   late = Greater (held, old)   past = LessOrEqual (held, at)
        known = Cast <to = 9> (filled)   near = And (late, past)   mask = And (near, known)
        y = Attention (q, nk, nv, mask)
        """,
    )  # fmt: skip


def build(target: Path, graph: str, fields: dict[str, str], **state: Any) -> Path:
    """A bundle that runs the decoder once a request; its state lasts for a session."""
    kv = {"graph": "decoder", "ports": {"p{x}": "n{x}"}, "axis": 2, "tokens": "ids", "scope": "session", **state}
    run = {"run": "decoder", "in": {"ids": "ids", "positions": "kv.positions", **fields}, "out": {"y": "y"}}
    manifest = {
        "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}},
        "outputs": {"y": {"type": "f32", "dims": [1, HEADS, "N", SIZE]}},
        "state": {"kv": kv},
        "steps": [run, {"emit": {"y": "y"}}],
    }
    return bundle(target, {"decoder": model(graph, "")}, manifest)


def hides_every_fifth(query: int, key: int) -> bool:
    return key <= query and (key % 5 != 2 or key == query)


def within(window: int) -> Callable[[int, int], bool]:
    return lambda query, key: query - window < key <= query


def attended(ids: list[int], sees: Callable[[int, int], bool]) -> Floats:
    """What the layer gives for all of a sequence, [1, heads, length, size], in float64 and without any cache."""
    count = len(ids)
    turned = KEYS[ids] + TURNS[:count]
    q, k, v = (
        np.asarray(rows, np.float64).reshape(count, HEADS, SIZE).swapaxes(0, 1)
        for rows in (QUERIES[ids], turned, VALUES[ids])
    )
    allowed = np.array([[sees(query, key) for key in range(count)] for query in range(count)])
    scores = np.where(allowed, q @ k.swapaxes(1, 2) / np.sqrt(SIZE), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True) @ v, np.float32)[None]
