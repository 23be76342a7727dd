# SPDX-License-Identifier: Apache-2.0
"""What is kept of earlier prompts saves their computing and changes no token."""

from __future__ import annotations

from collections import ChainMap
from pathlib import Path

import pytest

import genai_runner
from conftest import BACKENDS, SAMPLE
from genai_bundle.manifest import Generate
from genai_runner.arguments import Arguments
from genai_runner.body import Body
from genai_runner.interpreter import Request
from genai_runner.prefix_cache import PrefixCache
from runner.test_rows import recurrent
from runner.tiny import bundle

TEXT = "Once upon a time there was a little girl who had a red ball. " * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["auto", "portable"])
def test_r31_tokens_are_those_without_a_cache(backend: str, variant: str) -> None:
    endings = ["She was happy.", "She saw a dog.", "She saw a dog. The dog was big.", ""]
    with (
        genai_runner.load(SAMPLE, backend, variant=variant) as plain,
        genai_runner.load(SAMPLE, backend, variant=variant, prefix_cache=64 << 20) as cached,
    ):
        for number, ending in enumerate(endings):
            expected = plain(TEXT + ending, max_tokens=12)
            found = cached(TEXT + ending, max_tokens=12)
            assert found.tokens == expected.tokens
            assert (found.stats.metrics.prefix_cache_hits > 0) == (number > 0)


def test_answers_are_kept_too() -> None:
    with genai_runner.load(SAMPLE, prefix_cache=64 << 20) as pipe:
        first = pipe.generator(TEXT, max_tokens=60, ignore_eos=True)
        while not first.is_done:
            first.generate_next_token()
        first.remember()
        text = TEXT + pipe.decode(first.new_tokens)
        found = pipe(text, max_tokens=1)
    assert found.stats.metrics.prefix_cache_hits >= len(first.tokens) // 32 * 32 - 64


def test_memory_stays_within_its_bound_and_the_oldest_goes_first() -> None:
    with genai_runner.load(SAMPLE, prefix_cache=1 << 30) as pipe:
        cache = pipe.prefix_cache
        assert cache is not None
        pipe(f"0 {TEXT}", max_tokens=1)
        cache.limit = limit = 3 * cache.nbytes
        for number in range(1, 9):
            pipe(f"{number} {TEXT}", max_tokens=1)
            assert cache.nbytes <= limit
        assert pipe(f"8 {TEXT}", max_tokens=1).stats.metrics.prefix_cache_hits > 0
        assert pipe(f"0 {TEXT}", max_tokens=1).stats.metrics.prefix_cache_hits == 0
        cache.clear()
        assert (len(cache), cache.nbytes) == (0, 0)


def body_of(pipe: genai_runner.Pipeline) -> Body:
    step = next(step for step in pipe.manifest.steps if isinstance(step, Generate))
    return Body(Request(pipe._program, Arguments()), step.do, step.logits, ChainMap(), "ids")


def test_what_one_adapter_computed_is_not_given_to_another() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        cache, body, ids = PrefixCache(1 << 30), body_of(pipe), pipe.encode(TEXT)
        with pytest.raises(StopIteration):
            next(body.run(ids, {}))
        cache.remember(body, "pirate", ids)
        assert cache.recall(body_of(pipe), None, ids) == 0
        assert cache.recall(body_of(pipe), "pirate", ids[:-1]) == cache.recall(body_of(pipe), "pirate", ids) > 0


def test_recurrent_state_is_not_kept(tmp_path: Path) -> None:
    with genai_runner.load(recurrent(tmp_path / "a.genai"), prefix_cache=1 << 20) as pipe:
        for _ in range(2):
            assert pipe([[1] * 40], max_tokens=2).metrics.prefix_cache_hits == 0
        assert pipe.prefix_cache is not None
        assert len(pipe.prefix_cache) == 0


def test_what_more_than_ids_went_into_is_not_kept(tmp_path: Path) -> None:
    """As pictures do: here a number that is added to each id changes what the same ids mean."""
    graph = """
    decoder (int64[batch, seq] ids, int64[1] shift, float[batch, 1, past, 1] p) =>
            (float[batch, seq, 8] logits, float[batch, 1, total, 1] q)
    <int64 width = {8}, float[2] off_on = {0.0, 1.0}, int64[2] outer = {1, 3}>
    {
        added = Add (ids, shift)
        cast = Cast <to = 1> (added)
        new = Unsqueeze (cast, outer)
        q = Concat <axis = 2> (p, new)
        wrapped = Mod (added, width)
        logits = OneHot (wrapped, width, off_on)
    }
    """
    run = {"run": "decoder", "in": {"ids": "ids", "shift": "shift"}, "out": {"logits": "logits"}}
    manifest = {
        "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}, "shift": {"type": "i64", "dims": [1]}},
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}},
        "state": {"kv": {"graph": "decoder", "tokens": "ids", "ports": {"p": "q"}, "axis": 2, "capacity": 64}},
        "steps": [
            {"generate": {"carry": {"ids": "token"}, "do": [run], "logits": "logits", "emit": {"tokens": "token"}}}
        ],
    }
    path = bundle(tmp_path / "shifted.genai", {"decoder": graph}, manifest)
    with genai_runner.load(path, prefix_cache=1 << 20) as pipe:
        for shift in (1, 2, 1):
            found = pipe(ids=[[1] * 40], shift=[shift], max_tokens=2)
            assert (found.tokens, found.metrics.prefix_cache_hits) == ([1 + shift, (1 + 2 * shift) % 8], 0)
        assert pipe.prefix_cache is not None
        assert len(pipe.prefix_cache) == 0
