# SPDX-License-Identifier: Apache-2.0
"""What is kept of earlier prompts saves their computing and changes no token."""

from __future__ import annotations

import pytest

import genai_runner
from conftest import BACKENDS, SAMPLE

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
