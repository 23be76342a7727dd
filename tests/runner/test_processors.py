# SPDX-License-Identifier: Apache-2.0
"""What changes scores, against the rules written plainly; how it reaches a request; and what a request may not ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import genai_runner
from genai_bundle.errors import BackendError, UsageError
from genai_runner.options import Options
from genai_runner.processors import processed
from genai_runner.sampling import kept, sample
from runner.tiny import counter

Floats = NDArray[np.float64]
V = 6
FLAT = np.zeros(V)

ids = st.lists(st.integers(-1, V), max_size=9)
halves = st.integers(-6, 6).map(lambda n: n / 2)
words = st.lists(st.lists(st.integers(0, V), min_size=1, max_size=3).map(tuple), max_size=3)


def plainly(
    prompt: list[int], new: list[int], scores: list[float], options: Options, eos: Sequence[int]
) -> list[float]:
    """The page's rules, T36 to T40 and T18, one id after the other."""
    history, counts = prompt + new, Counter(new)
    result = []
    for id_, score in enumerate(scores):
        score += sum(bias for biased, bias in options.logit_bias if biased == id_)
        if id_ in history:
            score = score * options.repetition_penalty if score < 0 else score / options.repetition_penalty
        if counts[id_]:
            score -= counts[id_] * options.frequency_penalty + options.presence_penalty
        size = options.no_repeat_ngram_size
        behind = [*history, id_]
        again = [behind[at : at + size] for at in range(len(history) - size + 1)]
        bad = [list(word) for word in options.bad_words if len(word) <= len(behind)]
        early = len(new) < options.min_tokens and not options.ignore_eos
        if (
            (size and len(behind) >= size and behind[-size:] in again)
            or any(behind[-len(word) :] == word for word in bad)
            or (early and id_ in eos)
        ):
            score = -np.inf
        result.append(score)
    return result


@given(
    prompt=ids,
    new=ids,
    scores=st.lists(halves, min_size=V, max_size=V),
    options=st.builds(
        Options,
        logit_bias=st.lists(st.tuples(st.integers(0, V - 1), halves), max_size=3).map(tuple),
        repetition_penalty=st.sampled_from([0.5, 1.0, 2.0]),
        frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
        presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
        no_repeat_ngram_size=st.integers(0, 4),
        bad_words=words.map(tuple),
        min_tokens=st.integers(0, 4),
        ignore_eos=st.booleans(),
    ),
    eos=st.lists(st.integers(0, V), max_size=2),
)
def test_t17_t18_t36_t37_t38_t39_t40_scores_are_the_specified_ones(
    prompt: list[int], new: list[int], scores: list[float], options: Options, eos: list[int]
) -> None:
    expected = plainly(prompt, new, scores, options, eos)
    given = (np.array(scores), options, prompt + new, len(prompt), eos)
    if max(expected) == -np.inf:
        with pytest.raises(UsageError, match="exclude every token"):
            processed(*given)
    else:
        assert processed(*given).tolist() == expected


def test_t36_a_bias_on_an_id_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="logit_bias names the id 6, and the vocabulary has 6"):
        sample(FLAT, Options(logit_bias=((6, 1.0),)), step=0)


def test_t40_where_the_answer_is_not_known_nothing_that_looks_at_it_has_an_effect() -> None:
    options = Options(frequency_penalty=1, presence_penalty=1, min_tokens=9)
    assert processed(FLAT.copy(), options, [1, 2, 3], None, [0]).tolist() == FLAT.tolist()


def backwards(seen: Sequence[int], scores: Floats) -> Floats:
    return scores[::-1]


def test_t41_processors_come_after_the_options_each_with_what_the_one_before_it_gave() -> None:
    seen: list[tuple[list[int], list[float]]] = []

    def noting(history: Sequence[int], scores: Floats) -> Floats:
        seen.append((list(history), scores.tolist()))
        scores[5] = -np.inf
        return scores

    options = Options(logit_bias=((0, 2.0), (1, 1.0)))
    assert sample(FLAT, options, history=[3, 4], processors=[noting], step=0) == 0
    assert sample(FLAT, options, history=np.array([3, 4]), processors=[backwards, noting], step=0) == 4
    assert seen == [([3, 4], [2, 1, 0, 0, 0, 0]), ([3, 4], [0, 0, 0, 0, 1, 2])]
    assert FLAT.tolist() == [0] * V


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda history, scores: None, "gave nothing, expected scores .6."),
        (lambda history, scores: scores[:3], "gave the shape .3., expected scores .6."),
        (lambda history, scores: scores * np.nan, "NaN"),
        (lambda history, scores: scores + np.inf, "inf"),
        (lambda history, scores: scores - np.inf, "exclude every token"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_t41_what_a_processor_must_not_give(given: Any, message: str, temperature: float) -> None:
    with pytest.raises(UsageError, match=message):
        sample(FLAT, Options(temperature=temperature), processors=[given], step=0)


def test_t24_the_graphs_fault_is_not_laid_on_the_processors() -> None:
    with pytest.raises(BackendError, match="nan"):
        sample(np.full(V, np.nan), Options(), processors=[backwards], step=0)


@given(scores=st.lists(st.integers(-24, 24).map(lambda n: n / 8), min_size=1, max_size=30), p=st.floats(0, 0.999))
def test_t42_the_typical_set_is_the_specified_one(scores: list[float], p: float) -> None:
    weights = np.exp(scores)
    probabilities = weights / weights.sum()
    surprise = -np.log(probabilities)
    distance = np.abs(surprise - (probabilities * surprise).sum())
    order = sorted(range(len(scores)), key=lambda i: distance[i])
    count = next((n for n in range(1, len(order)) if probabilities[order[:n]].sum() >= p), len(order))
    ids, _ = kept(np.array(scores), Options(temperature=1, typical_p=p))
    near = 1e-9  # equal scores have distances that are equal but for rounding
    assert set(np.flatnonzero(distance < distance[order[count - 1]] - near)) <= set(ids.tolist())
    assert set(ids.tolist()) <= set(np.flatnonzero(distance <= distance[order[count - 1]] + near))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counter(tmp_path_factory.mktemp("processors") / "counter.genai")


@pytest.mark.parametrize("literal", [False, True])
class TestRequest:
    """Each option and the caller's processors change what a request gives, in the engine and in the expansion."""

    @pytest.mark.parametrize(
        ("options", "tokens"),
        [
            ({}, [3, 4, 5, 6]),
            ({"logit_bias": {"7": 9.0}}, [7, 7, 7, 7]),
            ({"bad_words": [[4], [6, 7]]}, [3, 0, 1, 2]),
            ({"no_repeat_ngram_size": 1, "logit_bias": {"7": 9.0}}, [7, 0, 3, 4]),
            ({"presence_penalty": 99.0, "logit_bias": {"7": 9.0}}, [7, 0, 1, 2]),
        ],
        ids=str,
    )
    def test_options(self, path: Path, literal: bool, options: dict[str, Any], tokens: list[int]) -> None:
        assert genai_runner.load(path, literal=literal)(ids=[1, 2], max_tokens=4, **options).tokens == tokens

    def test_processors(self, path: Path, literal: bool) -> None:
        seen: list[list[int]] = []

        def twice(history: Sequence[int], scores: Floats) -> Floats:
            seen.append(list(history))
            return np.roll(scores, 1)

        pipe = genai_runner.load(path, literal=literal)
        assert pipe(ids=[1], max_tokens=3, processors=[twice]).tokens == [3, 5, 7]
        assert seen == [[1], [1, 3], [1, 3, 5]]
        assert [piece.item() for piece in pipe.stream(ids=[1], max_tokens=2, processors=[twice])] == [3, 5]


def test_a_processor_is_told_before_the_model_runs(path: Path) -> None:
    class Ready:
        told: list[int]

        def begin(self, ids: Sequence[int]) -> None:
            self.told = list(ids)

        def __call__(self, ids: Sequence[int], scores: Floats) -> Floats:
            assert list(ids) == self.told
            return scores

    generator = genai_runner.load(path).generator(ids=[1, 2], processors=[Ready()])
    assert [generator.generate_next_token() for _ in range(3)] == [3, 4, 5]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("processors", 7, "a list of callables"), ("processors", [7], "a list of callables"), ("grammar", 7, "a Grammar")],
)
def test_arguments_that_are_no_processors(path: Path, name: str, value: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is .* takes {expected}"):
        genai_runner.load(path)(ids=[1], **{name: value})


def test_words_and_grammars_need_a_tokenizer(path: Path) -> None:
    class Grammar:
        def bind(self, text: object) -> Any:
            raise AssertionError

    for argument in ({"bad_words": ["no"]}, {"grammar": Grammar()}):
        with pytest.raises(UsageError, match="needs a tokenizer, and this bundle has none"):
            genai_runner.load(path)(ids=[1], **argument)
    with pytest.raises(UsageError, match="'no' has no ids here"):
        sample(FLAT, Options(bad_words=("no",)), step=0)


class TestText:
    """On the bundle that the project ships."""

    PROMPT = "Once upon a time"

    def test_t39_a_bad_word_does_not_come(self, sample: Path) -> None:
        pipe = genai_runner.load(sample)
        text = pipe(self.PROMPT, max_tokens=60).text
        word = next(word for word in text.split() if text.count(word) > 1 and word.isalpha())
        other = pipe(self.PROMPT, max_tokens=60, bad_words=[word])
        assert word in text
        assert word not in other.text.split()

    def test_stop_strings_across_tokens_cut_whatever_the_options(self, sample: Path) -> None:
        pipe = genai_runner.load(sample)
        options = {"max_tokens": 60, "no_repeat_ngram_size": 3, "presence_penalty": 0.4, "temperature": 0.9, "seed": 4}
        options |= {"typical_p": 0.9, "min_tokens": 40, "ignore_eos": True}
        whole = pipe(self.PROMPT, **options)
        first, second = pipe.decode(whole.tokens[:12]), pipe.decode(whole.tokens[12:15])
        stop = first[-3:] + second[:3]  # begins in one token and ends in another
        stream = pipe.stream(self.PROMPT, stop=["@@@", stop], **options)
        pieces = list(stream)
        assert "".join(pieces) == stream.result.text == whole.text[: whole.text.index(stop)]
        assert stream.result.tokens == whole.tokens[: len(stream.result.tokens)]
        assert stream.result.finish_reason == "stop"

    def test_t40_min_tokens_and_ignore_eos_go_on_behind_the_end(self, sample: Path) -> None:
        pipe = genai_runner.load(sample)
        (end,) = pipe.manifest.text.eos[:1]  # type: ignore[union-attr]
        soon = {"logit_bias": {end: 1000.0}, "max_tokens": 6}
        assert pipe(self.PROMPT, **soon).tokens == [end]
        later = pipe(self.PROMPT, min_tokens=3, **soon)
        assert later.tokens[3:] == [end]
        assert end not in later.tokens[:3]
        assert later.finish_reason == "stop"
        on = pipe(self.PROMPT, ignore_eos=True, **soon)
        assert on.tokens == [end] * 6
        assert on.finish_reason == "length"
