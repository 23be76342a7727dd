# SPDX-License-Identifier: Apache-2.0
"""Beams and several answers in one run of the model are what they are when each runs by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genai_runner
from conftest import BACKENDS, SAMPLE
from genai_runner import beams, several
from genai_runner.company import Apart
from genai_runner.rows import Rows
from runner.test_rows import recurrent, scattered

PROMPT = "Once upon a time"


def drawn(rng: np.random.Generator, vocabulary: int) -> dict[str, Any]:
    """Random options of several answers: beams, groups of them, or draws; a bias lets some end early."""
    found: dict[str, Any] = {"max_tokens": int(rng.integers(1, 9)), "logprobs": int(rng.integers(0, 3))}
    found["logit_bias"] = {int(one): float(rng.normal(0, 3)) for one in rng.integers(0, vocabulary, 4)}
    kind = rng.integers(3)
    if kind == 2:
        many = {"n": int(rng.integers(1, 4)), "best_of": 4} if rng.random() < 0.5 else {"n": int(rng.integers(2, 5))}
        return {**found, **many, "temperature": 1.5, "seed": int(rng.integers(99))}
    groups = int(rng.integers(2, 4)) if kind == 1 else 1
    found |= {"num_beams": int(rng.integers(2, 4)) * groups, "num_beam_groups": groups, "temperature": 0}
    found |= {"n": int(rng.integers(1, found["num_beams"] + 1)), "diversity_penalty": 0.7 if groups > 1 else 0.0}
    return {**found, "early_stopping": [False, True, "never"][rng.integers(3)], "repetition_penalty": 1.2}


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Undo it, and they are together."""
    for module in (beams, several):
        monkeypatch.setattr(module, "company", lambda _: Apart())
    return monkeypatch


def answers(pipe: genai_runner.Pipeline, prompt: Any, options: dict[str, Any]) -> tuple[Any, list[float]]:
    result = pipe(prompt, **options)
    scores = [one.score or 0.0 for one in result.sequences]
    scores += [of.logprob for one in result.sequences for of in one.logprobs or ()]
    usage = result.usage, result.tokens, result.text, result.metrics.prefill_tokens
    return ([(one.tokens, one.text, one.finish_reason) for one in result.sequences], usage), scores


def compare(
    pipe: genai_runner.Pipeline, prompts: list[Any], vocabulary: int, apart: pytest.MonkeyPatch, count: int = 12
) -> None:
    rng = np.random.default_rng(5)
    cases = [(prompts[place % len(prompts)], drawn(rng, vocabulary)) for place in range(count)]
    expected = [answers(pipe, *case) for case in cases]
    apart.undo()
    for case, (said, scores) in zip(cases, expected, strict=True):
        found, numbers = answers(pipe, *case)
        assert found == said, case
        assert np.allclose(numbers, scores, atol=1e-4), case
    assert list(pipe._program.joint.values()) == [None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_r29_answers_together_are_those_apart(backend: str, apart: pytest.MonkeyPatch) -> None:
    with genai_runner.load(SAMPLE, backend, variant="portable", threads=1) as pipe:
        compare(pipe, [PROMPT, "The dog said"], 500, apart, 4 if backend == "reference" else 12)


def test_r29_answers_together_are_those_apart_in_a_shared_buffer(apart: pytest.MonkeyPatch) -> None:
    with genai_runner.load(SAMPLE, threads=1) as pipe:
        compare(pipe, [PROMPT, "The dog said"], 500, apart)


@pytest.mark.parametrize("make", [scattered, recurrent])
def test_r29_answers_together_in_other_states(make: Any, tmp_path: Path, apart: pytest.MonkeyPatch) -> None:
    with genai_runner.load(make(tmp_path / "a.genai"), threads=1) as pipe:
        compare(pipe, [np.array([[3, 6, 1, 4]]), np.array([[7]])], 16, apart)


def test_a_step_of_all_beams_is_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    run = Rows.run

    def counted(self: Rows, tokens: Any) -> Any:
        rows.append(len(tokens))
        return run(self, tokens)

    options = {"temperature": 0, "num_beams": 4, "max_tokens": 7, "ignore_eos": True}
    with genai_runner.load(SAMPLE, threads=1) as pipe:
        pipe(PROMPT, **options)
        monkeypatch.setattr(Rows, "run", counted)
        result = pipe(PROMPT, **options)
        assert rows == [4] * 6
        assert result.metrics.prefill_tokens == result.usage.prompt_tokens
        rows.clear()
        assert len(pipe(PROMPT, n=3, temperature=1.0, seed=1, max_tokens=5, ignore_eos=True).sequences) == 3
        assert rows == [3] * 4


def test_cancelled_beams_run_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with genai_runner.load(SAMPLE, threads=1) as pipe:
        streams, seen = list[genai_runner.Stream](), list[int]()
        run = Rows.run

        def cancelling(self: Rows, tokens: Any) -> Any:
            seen.append(len(tokens))
            if streams and len(seen) == 3:
                streams[0].cancel()
            return run(self, tokens)

        pipe(PROMPT, temperature=0, num_beams=2, max_tokens=2)
        monkeypatch.setattr(Rows, "run", cancelling)
        seen.clear()
        streams.append(pipe.stream(PROMPT, temperature=0, num_beams=2, max_tokens=20))
        assert streams[0].result.finish_reason == "cancelled"
        assert len(seen) == 3


def test_what_was_computed_for_the_first_answer_is_kept() -> None:
    with genai_runner.load(SAMPLE, threads=1, prefix_cache=64 << 20) as pipe:
        first = pipe(PROMPT, n=2, temperature=1.0, seed=1, max_tokens=60, ignore_eos=True).sequences[0]
        again = pipe(PROMPT + first.text + " and", max_tokens=1)
        assert again.metrics.prefix_cache_hits > len(pipe.encode(PROMPT))
