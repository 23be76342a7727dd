# SPDX-License-Identifier: Apache-2.0
"""Sequences of different length in one run: which graphs take them, and that each row is what it is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import genai_runner
from conftest import BACKENDS
from genai_bundle.manifest import Generate
from genai_runner.rows import joint
from genai_runner.scheduler import Scheduler
from runner.disciplines import KEYS, QUERIES, VALUES, literal
from runner.tiny import HEADER, bundle, counter, model

TABLES = ", ".join(literal(*one) for one in [("tq", QUERIES), ("tk", KEYS), ("tv", VALUES)])
HEADER_24 = HEADER.replace("23", "24")

SCATTERED = f"""
decoder (int64[batch, 1] ids, int64[batch] start, int64[batch] total,
         float[batch, 2, 32, 8] pk, float[batch, 2, 32, 8] pv)
 => (float[batch, 1, 16] logits, float[batch, 2, 32, 8] nk, float[batch, 2, 32, 8] nv)
<{TABLES}, int64[4] heads = {{0, 0, 2, 8}}, int64[3] flat = {{0, 0, 16}}>
{{
 qs = Gather (tq, ids)  ks = Gather (tk, ids)  vs = Gather (tv, ids)
 qh = Reshape (qs, heads)  kh = Reshape (ks, heads)  vh = Reshape (vs, heads)
 q = Transpose <perm = [0, 2, 1, 3]> (qh)  k = Transpose <perm = [0, 2, 1, 3]> (kh)
 v = Transpose <perm = [0, 2, 1, 3]> (vh)
 nk = TensorScatter <axis = 2> (pk, k, start)  nv = TensorScatter <axis = 2> (pv, v, start)
 y = Attention (q, nk, nv, , , , total)
 yt = Transpose <perm = [0, 2, 1, 3]> (y)  rows = Reshape (yt, flat)  turned = Transpose <perm = [1, 0]> (tv)
 logits = MatMul (rows, turned)
}}
"""
"""A fixed buffer that TensorScatter writes, each row at a place of its own."""

RECURRENT = f"""
decoder (int64[batch, 1] ids, float[batch, 16] s) => (float[batch, 1, 16] logits, float[batch, 16] t)
<{TABLES}, int64[1] one = {{1}}, float decay = {{0.7}}>
{{
 words = Gather (tk, ids)  word = Squeeze (words, one)  old = Mul (s, decay)  t = Add (old, word)
 turned = Transpose <perm = [1, 0]> (tv)  scores = MatMul (t, turned)  logits = Unsqueeze (scores, one)
}}
"""

LENGTHS = (
    RECURRENT.replace("float[batch, 16] s)", "float[batch, 16] s, int64 place)")
    .replace(
        "old = Mul", "f = Cast <to = 1> (place)  g = Add (f, decay)  h = Div (g, g)  grown = Mul (s, h)  old = Mul"
    )
    .replace("(s, decay)", "(grown, decay)")
)
"""The same with one length for all rows, in a scalar."""


def made(target: Path, text: str, feeds: dict[str, str], **state: Any) -> Path:
    run = {"run": "decoder", "in": {"ids": "ids", **feeds}, "out": {"logits": "logits"}}
    manifest = {
        "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}},
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}},
        "state": {"kv": {"graph": "decoder", "tokens": "ids", **state}},
        "steps": [
            {"generate": {"carry": {"ids": "token"}, "do": [run], "logits": "logits", "emit": {"tokens": "token"}}}
        ],
    }
    return bundle(target, {"decoder": model(text, HEADER_24)}, manifest)


def scattered(target: Path) -> Path:
    feeds, ports = {"start": "kv.len", "total": "kv.total"}, {"pk": "nk", "pv": "nv"}
    return made(target, SCATTERED, feeds, ports=ports, axis=2, update="scatter", capacity=32)


def recurrent(target: Path) -> Path:
    return made(target, RECURRENT, {}, ports={"s": "t"}, axis=1, update="replace")


def why_not(pipe: genai_runner.Pipeline) -> str | None:
    step = next(step for step in pipe.manifest.steps if isinstance(step, Generate))
    return joint(pipe._program, step)


def in_company(pipe: genai_runner.Pipeline) -> None:
    prompts = [[[3, 6, 1, 4]], [[7]], [[2, 1, 5, 0, 5, 0]], [[4, 6]]]
    alone = [pipe(prompt, max_tokens=12 + place).tokens for place, prompt in enumerate(prompts)]
    with Scheduler(pipe) as scheduler:
        streams = [scheduler.submit(prompt, max_tokens=12 + place) for place, prompt in enumerate(prompts)]
        assert [stream.result.tokens for stream in streams] == alone


@pytest.mark.parametrize("backend", [one for one in BACKENDS if one in ("onnxruntime", "reference")])
def test_rows_of_a_fixed_buffer(tmp_path: Path, backend: str) -> None:
    with genai_runner.load(scattered(tmp_path / "a.genai"), backend) as pipe:
        assert why_not(pipe) is None
        in_company(pipe)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_recurrent_state(tmp_path: Path, backend: str) -> None:
    with genai_runner.load(recurrent(tmp_path / "a.genai"), backend) as pipe:
        assert why_not(pipe) is None
        in_company(pipe)


def test_a_graph_that_takes_one_length_for_all_rows_runs_them_one_by_one(tmp_path: Path) -> None:
    path = made(tmp_path / "a.genai", LENGTHS, {"place": "kv.len"}, ports={"s": "t"}, axis=1, update="replace")
    with genai_runner.load(path) as pipe:
        assert why_not(pipe) == "'place' takes one length for all rows"
        in_company(pipe)


def test_a_graph_that_mixes_rows_is_found_by_trial(tmp_path: Path) -> None:
    """Its ports allow rows; but the mean over all of them goes into each."""
    text = RECURRENT.replace("t = Add (old, word)", "zero = Constant <value = int64[1] {0}> ()  "
                             "mean = ReduceMean (word, zero)  t = Add (old, mean)")  # fmt: skip
    path = made(tmp_path / "a.genai", text, {}, ports={"s": "t"}, axis=1, update="replace")
    with genai_runner.load(path) as pipe:
        assert "differ" in str(why_not(pipe))
        in_company(pipe)


def test_a_graph_that_sums_over_all_rows_is_found_by_trial(tmp_path: Path) -> None:
    with genai_runner.load(counter(tmp_path / "counter.genai")) as pipe:
        assert "differ" in str(why_not(pipe))
        in_company(pipe)
