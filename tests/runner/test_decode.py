# SPDX-License-Identifier: Apache-2.0
"""The decode engine against the expansion that defines it, and the mid-level generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import genai_runner
from conftest import BACKENDS
from genai_bundle.errors import UsageError
from runner.tiny import counter


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counter(tmp_path_factory.mktemp("counter") / "counter.genai")


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_counts_upwards(path: Path, backend: str) -> None:
    result = genai_runner.load(path, backend)(ids=[1, 2], max_tokens=7)
    assert result.tokens == [3, 4, 5, 6, 7, 0, 1]
    assert result.outputs["tokens"].tolist() == [[3, 4, 5, 6, 7, 0, 1]]
    assert result.outputs["tokens"].dtype == np.int64
    assert result.finish_reason == "length"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens, result.usage.total_tokens) == (2, 7, 9)


@given(
    prompt=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    temperature=st.sampled_from([0.0, 0.05, 0.7, 3.0]),
    top_k=st.integers(0, 8),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.2]),
    typical_p=st.sampled_from([0.4, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    presence_penalty=st.sampled_from([0.0, -0.5]),
    no_repeat_ngram_size=st.sampled_from([0, 2]),
    logit_bias=st.sampled_from([{}, {3: 1.5}]),
    bad_words=st.sampled_from([[], [[5], [1, 2]]]),
    seed=st.integers(0, 2**64 - 1),
    max_tokens=st.integers(0, 6),
)
def test_engine_equals_expansion(path: Path, prompt: list[int], **options: Any) -> None:
    fast = genai_runner.load(path)(ids=prompt, **options)
    slow = genai_runner.load(path, literal=True)(ids=prompt, **options)
    assert fast.tokens == slow.tokens
    assert np.array_equal(fast.outputs["tokens"], slow.outputs["tokens"])
    assert fast.finish_reason == slow.finish_reason
    assert fast.usage == slow.usage


def test_same_seed_same_tokens_and_another_seed_others(path: Path) -> None:
    pipe = genai_runner.load(path)
    first, again, other = (pipe(ids=[1], max_tokens=30, temperature=2, seed=seed).tokens for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_streamed_pieces_join_to_the_output(path: Path) -> None:
    stream = genai_runner.load(path).stream(ids=[1], max_tokens=4)
    pieces = list(stream)
    assert [piece.tolist() for piece in pieces] == [[[2]], [[3]], [[4]], [[5]]]
    assert stream.result.tokens == [2, 3, 4, 5]


def test_generation_ends_where_the_context_is_full(path: Path) -> None:
    result = genai_runner.load(path)(ids=[0] * 60, max_tokens=100)
    assert len(result.tokens) == 4
    assert result.finish_reason == "length"
    with pytest.raises(UsageError, match="64 tokens leaves no room in the context of 64"):
        genai_runner.load(path)(ids=[0] * 64)


@pytest.mark.parametrize("literal", [False, True])
def test_stop_strings_need_a_tokenizer(path: Path, literal: bool) -> None:
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        genai_runner.load(path, literal=literal)(ids=[1], stop=["x"])


def test_a_stream_may_be_left_at_any_time(path: Path) -> None:
    pipe = genai_runner.load(path)
    next(iter(pipe.stream(ids=[1])))
    assert pipe(ids=[1], max_tokens=3).tokens == [2, 3, 4]


class TestGenerator:
    def test_step_by_step_equals_the_pipeline(self, path: Path) -> None:
        pipe = genai_runner.load(path)
        options = {"temperature": 1.5, "seed": 3, "max_tokens": 9}
        generator = pipe.generator(ids=[4, 5], **options)
        while not generator.is_done:
            generator.generate_next_token()
        assert generator.new_tokens == pipe(ids=[4, 5], **options).tokens
        with pytest.raises(UsageError, match="done"):
            generator.generate_next_token()

    def test_rewind_gives_the_same_continuation(self, path: Path) -> None:
        generator = genai_runner.load(path).generator(ids=[1, 2, 3], temperature=2, seed=11, max_tokens=10)
        logits = []
        for _ in range(6):
            logits.append(generator.get_logits())
            generator.generate_next_token()
        before = list(generator.tokens)
        generator.rewind_to(5)
        assert generator.tokens == before[:5]
        for expected in logits[2:]:
            assert np.array_equal(generator.get_logits(), expected)
            generator.generate_next_token()
        assert generator.tokens == before

    def test_rewind_into_the_prompt_and_to_the_present(self, path: Path) -> None:
        generator = genai_runner.load(path).generator(ids=[1, 2, 3], max_tokens=10)
        generator.generate_next_token()
        generator.rewind_to(4)
        assert generator.generate_next_token() == 5
        generator.rewind_to(2)
        assert generator.generate_next_token() == 3
        with pytest.raises(UsageError, match="cannot rewind to 9"):
            generator.rewind_to(9)

    def test_appended_tokens_are_prompt(self, path: Path) -> None:
        generator = genai_runner.load(path).generator(ids=[1], max_tokens=2)
        assert [generator.generate_next_token() for _ in range(2)] == [2, 3]
        generator.append_tokens([6])
        assert not generator.is_done
        assert generator.generate_next_token() == 7
        fresh = genai_runner.load(path).generator(ids=[1, 2, 3, 6, 7], max_tokens=2)
        assert np.allclose(generator.get_logits(), fresh.get_logits(), atol=1e-6)

    def test_appending_does_not_draw_the_same_numbers_again(self, path: Path) -> None:
        generator = genai_runner.load(path).generator(ids=[1], temperature=1e6, seed=5, max_tokens=40)
        first = [generator.generate_next_token() for _ in range(20)]
        generator.append_tokens([1])
        assert [generator.generate_next_token() for _ in range(20)] != first

    def test_a_turn_that_does_not_fit_changes_nothing(self, path: Path) -> None:
        generator = genai_runner.load(path).generator(ids=[1], max_tokens=40)
        generator.generate_next_token()
        with pytest.raises(UsageError, match="leaves no room"):
            generator.append_tokens([0] * 64)
        assert generator.tokens == [1, 2]
        assert generator.generate_next_token() == 3

    def test_logits_may_be_replaced(self, path: Path) -> None:
        generator = genai_runner.load(path).generator(ids=[1])
        generator.set_logits(np.eye(8, dtype=np.float32)[6])
        assert generator.generate_next_token() == 6
        with pytest.raises(UsageError, match=r"shape \[8\], got \[3\]"):
            generator.set_logits(np.zeros(3, np.float32))
