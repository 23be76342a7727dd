# SPDX-License-Identifier: Apache-2.0
"""Log probabilities: the model's own, whatever the options do to the choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genai_runner
from genai_bundle.errors import UsageError
from genai_runner.sequences import logprob_of
from runner.tiny import bundle, counter


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counter(tmp_path_factory.mktemp("sequences") / "counter.genai")


@pytest.mark.torch
@pytest.mark.parametrize("count", [0, 1, 5, 300, 500])
def test_r27_logprobs_are_torchs_log_softmax_and_its_top(count: int) -> None:
    import torch

    logits = (np.random.default_rng(count).normal(size=300) * 9).astype(np.float32)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1)
    found = logprob_of(logits, 17, count)
    values, ids = torch.topk(expected, min(count, 300))
    assert found.token == 17
    assert np.isclose(found.logprob, expected[17].item(), rtol=1e-12)
    assert [id_ for id_, _ in found.top] == ids.tolist()
    assert np.allclose([value for _, value in found.top], values.numpy(), rtol=1e-12)


def test_r27_of_equals_the_lower_id_comes_first() -> None:
    assert [id_ for id_, _ in logprob_of(np.array([0.0, 1.0, 0.0, 0.0, -np.inf], np.float32), 0, 3).top] == [1, 0, 2]


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 3.0, "seed": 5, "top_k": 4}, {"logit_bias": {0: 99.0}}, {"processors": [lambda ids, s: -s]}],
    ids=["greedy", "sampled", "biased", "processed"],
)
def test_r27_logprobs_are_the_models_own(path: Path, options: dict[str, Any]) -> None:
    pipe = genai_runner.load(path)
    (only,) = pipe(ids=[1, 2], max_tokens=5, logprobs=2, **options).sequences
    assert only.logprobs is not None
    assert [one.token for one in only.logprobs] == only.tokens
    generator = pipe.generator(ids=[1, 2], max_tokens=9)
    for one in only.logprobs:
        assert one == logprob_of(generator.get_logits(), one.token, 2)
        assert len(one.top) == 2
        generator.accept(one.token)
    assert generator.new_tokens == only.tokens


def test_an_answer_without_logprobs_has_none(path: Path) -> None:
    result = genai_runner.load(path)(ids=[1, 2], max_tokens=3)
    assert [(one.tokens, one.finish_reason, one.logprobs) for one in result.sequences] == [([3, 4, 5], "length", None)]


def test_logprobs_follow_a_rewind_and_begin_anew_with_a_turn(path: Path) -> None:
    generator = genai_runner.load(path).generator(ids=[1, 2], max_tokens=9, logprobs=0)
    for _ in range(4):
        generator.generate_next_token()
    generator.rewind_to(4)
    generator.generate_next_token()
    assert [one.token for one in generator.logprobs] == generator.new_tokens == [3, 4, 5]
    generator.append_tokens([1])
    assert generator.logprobs == []
    generator.accept(7)
    assert [one.token for one in generator.logprobs] == [7]


def test_accepted_tokens_are_run_like_drawn_ones(path: Path) -> None:
    pipe = genai_runner.load(path)
    generator = pipe.generator(ids=[1, 2], max_tokens=4)
    generator.accept(5)  # before anything was run
    generator.accept(0)
    assert generator.generate_next_token() == 1
    assert generator.new_tokens == [5, 0, 1]
    assert np.array_equal(generator.get_logits(), pipe.generator(ids=[1, 2, 5, 0, 1]).get_logits())
    generator.accept(6)
    assert generator.is_done


@pytest.mark.parametrize("given", [{"logprobs": 1}, {"n": 2, "temperature": 1.0}, {"num_beams": 2}], ids=str)
def test_what_belongs_to_a_generate_is_refused_where_there_is_none(tmp_path: Path, given: dict[str, Any]) -> None:
    port = {"type": "i64", "dims": [1]}
    echo = {"inputs": {"ids": port}, "outputs": {"same": port}, "steps": [{"emit": {"same": "ids"}}]}
    with pytest.raises(UsageError, match=rf"{next(iter(given))} needs a `generate`"):
        genai_runner.load(bundle(tmp_path / "x.genai", {}, echo))(ids=[1], **given)
