# SPDX-License-Identifier: Apache-2.0
"""Several answers to one prompt: drawn, chosen among more, and found with beams."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genai_runner
from conftest import BACKENDS, optional
from genai_bundle.errors import UsageError
from genai_runner.beams import search
from genai_runner.options import Options
from genai_runner.replies import Reply
from genai_runner.sampling import sample as choose
from runner import group_beams
from runner.tiny import bundle, counter

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counter(tmp_path_factory.mktemp("several") / "counter.genai")


@pytest.mark.parametrize("backend", BACKENDS)
def test_r28_answer_i_is_drawn_with_row_i(path: Path, backend: str) -> None:
    pipe, options = genai_runner.load(path, backend), {"temperature": 3.0, "seed": 5, "max_tokens": 6}
    result = pipe(ids=[1, 2], n=4, **options)
    expected = []
    for row in range(4):
        generator = pipe.generator(ids=[1, 2], max_tokens=6)
        for step in range(6):
            chosen = choose(generator.get_logits(), Options(temperature=3.0, seed=5), step=step, row=row)
            generator.accept(chosen)
        expected.append(generator.new_tokens)
    assert [one.tokens for one in result.sequences] == expected
    assert len({tuple(tokens) for tokens in expected}) == 4
    assert result.tokens == expected[0] == pipe(ids=[1, 2], **options).tokens
    assert result.outputs["tokens"].tolist() == [expected[0]]
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (2, 24)
    assert result.metrics.prefill_tokens == 2  # the prompt is run once


def test_the_first_of_several_answers_is_streamed(sample: Path) -> None:
    pipe = genai_runner.load(sample)
    stream = pipe.stream(PROMPT, n=2, temperature=1.0, max_tokens=12)
    pieces = list(stream)
    assert len(pieces) > 3
    first, second = stream.result.sequences
    assert "".join(pieces) == first.text == stream.result.text
    assert second.text == pipe.decode(second.tokens) != first.text


def test_r28_the_best_of_more_answers_are_given(sample: Path) -> None:
    pipe, options = genai_runner.load(sample), {"temperature": 1.2, "seed": 3, "max_tokens": 10, "logprobs": 0}
    all_ = pipe(PROMPT, n=6, **options).sequences
    means = [float(np.mean([one.logprob for one in answer.logprobs or ()])) for answer in all_]
    order = sorted(range(6), key=lambda i: -means[i])
    stream = pipe.stream(PROMPT, n=2, best_of=6, **options)
    pieces, best = list(stream), stream.result
    assert [one.tokens for one in best.sequences] == [all_[i].tokens for i in order[:2]]
    assert np.allclose([one.score or 0 for one in best.sequences], sorted(means, reverse=True)[:2])
    assert pieces == [best.text] == [all_[order[0]].text]
    assert best.tokens == best.sequences[0].tokens
    assert best.sequences[0].logprobs == all_[order[0]].logprobs


def test_each_answer_has_its_parts(sample: Path) -> None:
    with genai_runner.load(sample) as pipe:
        result = pipe(PROMPT, n=3, temperature=1.0, seed=2, max_tokens=6)
        assert [one.reply for one in result.sequences] == [Reply(one.text) for one in result.sequences]
        assert result.reply == result.sequences[0].reply != result.sequences[1].reply
        (only,) = pipe(PROMPT, max_tokens=3).sequences
        assert only.reply == Reply(only.text)


def test_each_answer_ends_for_its_own_reason(sample: Path) -> None:
    pipe = genai_runner.load(sample)
    found = pipe(PROMPT, n=4, temperature=1.0, max_tokens=20, stop=["little"]).sequences
    for one in found:
        assert one.finish_reason == ("stop" if "little" in pipe.decode(one.tokens) else "length")
        assert "little" not in one.text
    assert {one.finish_reason for one in found} == {"stop", "length"}


CASES = json.loads(group_beams.FILE.read_text(encoding="utf-8"))["cases"]
TABLE = """
decoder (int64[1,S] ids) => (float[1,S,V] logits) <float[{size},{size}] rows = {{{values}}}> {{
    logits = Gather (rows, ids)
}}
"""


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["seed"]))
def test_r29_groups_of_beams_are_those_of_transformers(case: dict[str, Any], tmp_path: Path) -> None:
    scores = group_beams.table(case["seed"])
    graph = TABLE.format(size=len(scores), values=", ".join(map(str, scores.ravel().tolist())))
    generate = {
        "carry": {"ids": "token"},
        "do": [{"run": "decoder", "in": {"ids": "ids"}, "out": {"logits": "logits"}}],
        "logits": "logits",
        "emit": {"tokens": "token"},
    }
    manifest = {
        "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}},
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}},
        "steps": [{"generate": generate}],
    }
    options, eos = Options.merge({}, case["options"]), group_beams.EOS
    with genai_runner.load(bundle(tmp_path / "table.genai", {"decoder": graph}, manifest), "reference") as pipe:
        decoder = pipe.generator(ids=case["prompt"], max_tokens=options.max_tokens)
        found = search(decoder, options, eos, lambda tokens: tokens[-1] in eos)
    assert [one.tokens for one in found] == [one["tokens"] for one in case["answers"]]
    # transformers sums in float32.
    assert np.allclose([one.score for one in found], [one["score"] for one in case["answers"]], rtol=1e-5)


def test_r29_a_score_is_the_sum_of_logprobs_over_the_length(sample: Path) -> None:
    pipe = genai_runner.load(sample)
    result = pipe(PROMPT, temperature=0, num_beams=4, n=4, length_penalty=0.7, max_tokens=8, logprobs=1)
    assert len(result.sequences) == 4
    assert result.metrics.prefill_tokens == result.usage.prompt_tokens  # the prompt is run once
    for one in result.sequences:
        assert one.logprobs is not None
        assert [of.token for of in one.logprobs] == one.tokens
        assert np.isclose(one.score or 0, sum(of.logprob for of in one.logprobs) / len(one.tokens) ** 0.7)
    scores = [one.score or 0 for one in result.sequences]
    assert scores == sorted(scores, reverse=True)
    greedy = pipe(PROMPT, temperature=0, max_tokens=8, logprobs=0).sequences[0].logprobs or ()
    assert scores[0] * 8**0.7 >= sum(of.logprob for of in greedy)


def test_beams_give_their_text_at_the_end_cut_before_a_stop_string(sample: Path) -> None:
    pipe, beams = genai_runner.load(sample), {"temperature": 0, "num_beams": 3, "max_tokens": 16}
    whole = pipe(PROMPT, **beams)
    stop = whole.text[9:14]
    stream = pipe.stream(PROMPT, stop=stop, **beams)
    assert list(stream) == [stream.result.text]
    assert stop not in stream.result.text
    assert {
        one.finish_reason for one in pipe(PROMPT, n=3, early_stopping=True, stop=["e", "a"], **beams).sequences
    } == {"stop"}
    assert pipe(PROMPT, max_tokens=0, temperature=0, num_beams=2).tokens == []


@pytest.mark.parametrize("options", [{"num_beams": 3, "temperature": 0, "n": 3}, {"n": 3, "temperature": 2.0}], ids=str)
def test_processors_hold_for_every_answer(sample: Path, options: dict[str, Any]) -> None:
    def even(ids: Sequence[int], scores: Any) -> Any:
        scores[1::2] = -np.inf
        return scores

    result = genai_runner.load(sample)(PROMPT, max_tokens=6, processors=[even], **options)
    assert len(result.sequences) == 3
    assert not any(token % 2 for one in result.sequences for token in one.tokens)


class Counting:
    """Forbids as many of the first ids as it was called; whoever it was copied for counts on alone."""

    def __init__(self, calls: int = 0) -> None:
        self.calls = calls

    def __call__(self, ids: Sequence[int], scores: Any) -> Any:
        self.calls += 1
        scores[: self.calls] = -np.inf
        return scores

    def fork(self) -> Counting:
        return Counting(self.calls)


def test_a_processor_with_a_memory_is_copied_for_each_answer(path: Path) -> None:
    pipe, options = genai_runner.load(path), {"temperature": 9.0, "max_tokens": 7}
    drawn = pipe(ids=[1], n=3, processors=[Counting()], **options).sequences
    assert [one.tokens[-1] for one in drawn] == [7] * 3
    found = pipe(ids=[1], num_beams=3, n=3, temperature=0, max_tokens=7, processors=[Counting()]).sequences
    assert {one.tokens[-1] for one in found} == {7}


@pytest.mark.parametrize("options", [{"num_beams": 4, "temperature": 0}, {"temperature": 1.2}], ids=str)
def test_a_grammar_holds_for_every_answer(sample: Path, options: dict[str, Any]) -> None:
    optional("llguidance", "grammar")
    form = " (red|green|blue) (cat|dog)s?[.]"
    grammar = genai_runner.Grammar.regex(form)
    found = genai_runner.load(sample)(PROMPT, grammar=grammar, n=4, max_tokens=20, **options).sequences
    assert len(found) == 4
    assert all(re.fullmatch(form, one.text) and one.finish_reason == "stop" for one in found)


SEVERAL = [{"n": 2, "temperature": 1.0}, {"best_of": 2, "temperature": 1.0}, {"num_beams": 2}]


@pytest.mark.parametrize("several", SEVERAL, ids=str)
def test_several_answers_are_for_single_calls(path: Path, several: dict[str, Any], tmp_path: Path) -> None:
    pipe = genai_runner.load(path)
    with pytest.raises(UsageError, match="a generator makes one answer"):
        pipe.generator(ids=[1], **several)
    with pytest.raises(UsageError, match="a session goes on from one answer"):
        pipe.session()(ids=[1], **several)
    manifest = json.loads(pipe.bundle.read("manifest.json"))
    (step,) = manifest["steps"]
    step["generate"]["do"].append({"emit": {"scores": "logits"}})
    outputs = manifest["outputs"] | {"scores": {"type": "f32", "dims": [1, "T*", 8]}}
    noisy = counter(tmp_path / "noisy.genai", steps=[step], outputs=outputs)
    with pytest.raises(UsageError, match="a body that emits nothing"):
        genai_runner.load(noisy)(ids=[1], **several)
