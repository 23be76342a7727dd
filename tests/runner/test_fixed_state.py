# SPDX-License-Identifier: Apache-2.0
"""State that does not grow, on every backend: recurrent and convolution state, cross-attention, a borrowed cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genai_runner
from runner.disciplines import HEADS, IDS, KEYS, NUMBERS, QUERIES, RUNS, SIZE, TABLES, VALUES, attended, literal, spans
from runner.tiny import bundle, model

HEADER = '<ir_version: 10, opset_import: ["" : 24]>\n'
TAPS = np.random.default_rng(4).standard_normal((HEADS * SIZE, 1, 4)).astype(np.float32)
DECAY = np.float32(0.875)

RECURRENT = f"""
mixer (int64[1,N] ids, float[1,16,3] pconv, float[16,16] prec)
 => (float[N,16] y, float[1,16,3] nconv, float[16,16] nrec)
<{TABLES}, {literal("taps", TAPS)}, float decay = {{0.875}}, int64[1] zero = {{0}}, int64[1] begin = {{-3}},
 int64[1] end = {{9223372036854775807}}, int64[1] last = {{2}}> {{
  rows = Gather (tk, ids)   turned = Transpose <perm = [0, 2, 1]> (rows)   joined = Concat <axis = 2> (pconv, turned)
  nconv = Slice (joined, begin, end, last)   mixed = Conv <group = 16> (joined, taps)
  back = Transpose <perm = [0, 2, 1]> (mixed)   k = Squeeze (back, zero)
  vs = Gather (tv, ids)   v = Squeeze (vs, zero)   qs = Gather (tq, ids)   q = Squeeze (qs, zero)
  nrec, y = Scan (prec, k, v, q) <num_scan_inputs = 3, body = step
    (float[16,16] held, float[16] key, float[16] value, float[16] query) => (float[16,16] next, float[16] given) {{
      faded = Mul (held, decay)   axis = Constant <value_ints = [1]> ()   other = Constant <value_ints = [0]> ()
      standing = Unsqueeze (key, axis)   lying = Unsqueeze (value, other)   outer = MatMul (standing, lying)
      next = Add (faded, outer)   row = Unsqueeze (query, other)   seen = MatMul (row, next)
      given = Squeeze (seen, other)
    }}>
}}
"""


@pytest.fixture(params=["onnxruntime", "reference", pytest.param("openvino", marks=pytest.mark.openvino)])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def mixed(ids: list[int]) -> Any:
    """The recurrence over a whole sequence, in float64: a convolution of four taps, then an outer product a step."""
    rows = np.concatenate([np.zeros((3, HEADS * SIZE)), KEYS[ids]])
    state, given = np.zeros((16, 16)), []
    for place, token in enumerate(ids):
        key = (rows[place : place + 4] * TAPS[:, 0].T).sum(0)
        state = float(DECAY) * state + np.outer(key, VALUES[token].astype(np.float64))
        given.append(QUERIES[token] @ state)
    return np.stack(given)


@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_recurrent_and_convolution_state(tmp_path: Path, backend: str, runs: list[int]) -> None:
    state = {"graph": "mixer", "update": "replace", "tokens": "ids", "scope": "session", "ports": {"p{x}": "n{x}"}}
    manifest = {
        "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}},
        "outputs": {"y": {"type": "f32", "dims": ["N", 16]}},
        "state": {"held": state},
        "steps": [{"run": "mixer", "in": {"ids": "ids"}, "out": {"y": "y"}}, {"emit": {"y": "y"}}],
    }
    path = bundle(tmp_path / "x.genai", {"mixer": model(RECURRENT, HEADER)}, manifest)
    expected = mixed(IDS)
    with genai_runner.load(path, backend, threads=1) as pipe:
        for session in (pipe.session(), pipe.session()):
            for start, stop in spans(runs):
                y = session(ids=[IDS[start:stop]]).outputs["y"]
                np.testing.assert_allclose(y, expected[start:stop], atol=2e-4, rtol=1e-4)


CROSS = f"""
reader (int64[1,N] ids, int64[1,M] heard, float[1,2,P,8] pk, float[1,2,P,8] pv)
 => (float[1,2,N,8] y, float[1,2,K,8] nk, float[1,2,K,8] nv)
<{TABLES}, {NUMBERS}, int64 none = {{0}}> {{
  length = Shape <start = 2, end = 3> (pk)   count = Squeeze (length)   empty = Equal (count, none)
  nk, nv = If (empty) <then_branch = fill () => (float[1,2,K,8] fk, float[1,2,K,8] fv) {{
    ks = Gather (tk, heard)   kh = Reshape (ks, heads)   fk = Transpose <perm = [0, 2, 1, 3]> (kh)
    vs = Gather (tv, heard)   vh = Reshape (vs, heads)   fv = Transpose <perm = [0, 2, 1, 3]> (vh)
  }}, else_branch = reuse () => (float[1,2,K,8] rk, float[1,2,K,8] rv) {{ rk = Identity (pk) rv = Identity (pv) }}>
  qs = Gather (tq, ids)   qh = Reshape (qs, heads)   q = Transpose <perm = [0, 2, 1, 3]> (qh)
  y = Attention (q, nk, nv)
}}
"""


def crossed(ids: list[int], heard: list[int]) -> Any:
    parts = (QUERIES[ids], KEYS[heard], VALUES[heard])
    q, k, v = (rows.astype(np.float64).reshape(-1, HEADS, SIZE).swapaxes(0, 1) for rows in parts)
    scores = q @ k.swapaxes(1, 2) / np.sqrt(SIZE)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v)[None]


def test_cross_attention_is_filled_once(tmp_path: Path, backend: str) -> None:
    """What is heard later counts for nothing: the first run of a session has filled the state."""
    state = {"graph": "reader", "update": "once", "tokens": "ids", "scope": "session", "ports": {"p{x}": "n{x}"}}
    manifest = {
        "inputs": {name: {"type": "i64", "dims": [1, dim]} for name, dim in (("ids", "N"), ("heard", "M"))},
        "outputs": {"y": {"type": "f32", "dims": [1, 2, "N", 8]}},
        "state": {"cross": {**state, "axis": 2}},
        "steps": [{"run": "reader", "in": {"ids": "ids", "heard": "heard"}, "out": {"y": "y"}}, {"emit": {"y": "y"}}],
    }
    path = bundle(tmp_path / "x.genai", {"reader": model(CROSS, HEADER)}, manifest)
    with genai_runner.load(path, backend, threads=1) as pipe:
        for heard in ([4, 9, 2, 15, 1], [7, 3]):
            session = pipe.session()
            for ids, said in (([3, 1], heard), ([5], [0, 0, 0]), ([6, 2, 8], heard[:1])):
                y = session(ids=[ids], heard=[said]).outputs["y"]
                np.testing.assert_allclose(y, crossed(ids, heard), atol=2e-5)


OWNER = f"""
writer (int64[1,N] ids, int64[1,N] positions, float[1,2,P,8] pk, float[1,2,P,8] pv)
 => (float[1,2,T,8] nk, float[1,2,T,8] nv)
<{TABLES}, {NUMBERS}> {{
  words = Gather (tk, ids)   turns = Gather (tp, positions)   ks = Add (words, turns)   kh = Reshape (ks, heads)
  vs = Gather (tv, ids)   vh = Reshape (vs, heads)   k = Transpose <perm = [0, 2, 1, 3]> (kh)
  v = Transpose <perm = [0, 2, 1, 3]> (vh)   nk = Concat <axis = 2> (pk, k)   nv = Concat <axis = 2> (pv, v)
}}
"""
FIXED = (
    OWNER.replace("P,8]", "24,8]")
    .replace("T,8]", "24,8]")
    .replace("nk = Concat <axis = 2> (pk, k)   nv = Concat <axis = 2> (pv, v)", """
  spot = Reshape (positions, slot)   wide = Shape (k)   index = Expand (spot, wide)
  nk = ScatterElements <axis = 2> (pk, index, k)   nv = ScatterElements <axis = 2> (pv, index, v)
""")
)  # fmt: skip
BORROWER = f"""
drafter (int64[1,N] ids, int64 held, float[1,2,P,8] bk, float[1,2,P,8] bv) => (float[1,2,N,8] y)
<{TABLES}, {NUMBERS}> {{
  qs = Gather (tq, ids)   qh = Reshape (qs, heads)   q = Transpose <perm = [0, 2, 1, 3]> (qh)
  size = Shape <start = 2, end = 3> (bk)   count = Squeeze (size)   places = Range (zero, count, one)
  there = Less (places, held)   new = Shape <start = 1, end = 2> (ids)
  rows = Concat <axis = 0> (new, row)   mask = Expand (there, rows)   y = Attention (q, bk, bv, mask)
}}
""".replace("int64 two = {2}", "int64 two = {2}, int64[1] row = {1}")


@pytest.mark.parametrize(("update", "graph"), [("append", OWNER), ("scatter", FIXED)])
def test_a_borrowed_cache_is_what_its_owner_holds(tmp_path: Path, backend: str, update: str, graph: str) -> None:
    kv = {
        "graph": "writer",
        "update": update,
        "axis": 2,
        "tokens": "ids",
        "scope": "session",
        "ports": {"p{x}": "n{x}"},
    }
    more = {"capacity": 24} if update == "scatter" else {}
    borrowed = {"graph": "drafter", "update": "read", "of": "kv", "scope": "session", "ports": {"b{x}": "p{x}"}}
    manifest = {
        "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}},
        "outputs": {"y": {"type": "f32", "dims": [1, 2, "N", 8]}},
        "state": {"kv": {**kv, **more}, "seen": borrowed},
        "steps": [
            {"run": "writer", "in": {"ids": "ids", "positions": "kv.positions"}, "out": {}},
            {"run": "drafter", "in": {"ids": "ids", "held": "seen.len"}, "out": {"y": "y"}},
            {"emit": {"y": "y"}},
        ],
    }
    graphs: dict[str, str | bytes] = {"writer": model(graph, HEADER), "drafter": model(BORROWER, HEADER)}
    path = bundle(tmp_path / "x.genai", graphs, manifest)
    with genai_runner.load(path, backend, threads=1) as pipe:
        session = pipe.session()
        for start, stop in spans([3, 1, 1, 5, 4]):
            y = session(ids=[IDS[start:stop]]).outputs["y"]
            whole = attended(IDS[:stop], lambda query, key: True)  # all that the owner holds after its run
            np.testing.assert_allclose(y, whole[:, :, start:stop], atol=2e-5)
