# SPDX-License-Identifier: Apache-2.0
"""Options and sampling: against the specification written plainly, against transformers, and against chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from genai_bundle.errors import BackendError, UsageError
from genai_runner import philox
from genai_runner.sampling import OPTIONS, Options, kept, penalise, sample

Floats = NDArray[np.float64]


def plainly(scores: Floats, options: Options) -> dict[int, float]:
    """The page's rules, one after the other, with sorted lists: id -> probability."""
    scaled = {i: s / options.temperature for i, s in enumerate(scores.tolist()) if s > -np.inf}
    if options.top_k:
        kth = sorted(scaled.values(), reverse=True)[: options.top_k][-1]
        scaled = {i: s for i, s in scaled.items() if s >= kth}
    peak = max(scaled.values())
    weights = {i: float(np.exp(s - peak)) for i, s in scaled.items()}
    order = sorted(weights, key=lambda i: (-weights[i], i))
    goal, total, nucleus = options.top_p * sum(weights.values()), 0.0, []
    for i in order:
        nucleus.append(i)
        total += weights[i]
        if total >= goal:
            break
    left = nucleus if options.top_p < 1 else order
    left = [i for i in sorted(left) if weights[i] >= options.min_p]
    mass = sum(weights[i] for i in left)
    return {i: weights[i] / mass for i in left}


@given(
    # Eighths: their differences, sums and quotients by a power of two are exact, so that ties are ties.
    scores=st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=50),
    temperature=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.0, 0.1, 0.37, 0.5, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
)
def test_t17_t20_t21_t22_the_kept_set_is_the_specified_one(
    scores: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    options = Options(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, weights = kept(np.array(scores), options)
    expected = plainly(np.array(scores), options)
    assert ids.tolist() == list(expected)
    assert np.allclose(weights / weights.sum(), list(expected.values()), rtol=1e-12)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999, 0.9999999])
@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
def test_the_nucleus_of_a_large_vocabulary_equals_a_full_sort(top_p: float, spread: float) -> None:
    scores = np.random.default_rng(3).normal(size=20_000).astype(np.float32).astype(np.float64) * spread
    ids, _ = kept(scores, Options(temperature=1, top_p=top_p))
    weights = np.exp(scores - scores.max())
    order = np.argsort(-weights, kind="stable")
    needed = int(np.searchsorted(np.cumsum(weights[order]), top_p * np.cumsum(weights)[-1])) + 1
    assert ids.tolist() == sorted(order[:needed].tolist())


CASES: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 0.8},
]


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_transformers_keeps_the_same_ids_with_the_same_probabilities(case: dict[str, Any], seed: int) -> None:
    import torch
    import transformers

    hf: Any = transformers
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    scores, history = (rng.normal(size=300) * 3).astype(np.float32), rng.integers(0, 300, 40)
    options = Options.merge({}, case)
    steps: list[Any] = []
    if options.repetition_penalty != 1:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    steps.append(hf.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        steps.append(hf.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(hf.TopPLogitsWarper(options.top_p))
    if options.min_p:
        steps.append(hf.MinPLogitsWarper(options.min_p))
    warped = torch.from_numpy(scores)[None]
    for step in steps:
        warped = step(torch.from_numpy(history)[None], warped)
    theirs = torch.softmax(warped[0].double(), -1).numpy()

    penalised = penalise(scores.astype(np.float64), history, options.repetition_penalty)
    ids, weights = kept(penalised, options)
    assert ids.tolist() == np.flatnonzero(theirs).tolist()
    assert np.allclose(weights / weights.sum(), theirs[ids], rtol=1e-5)


def test_draws_follow_the_probabilities() -> None:
    scores = np.log(np.array([0.05, 0.4, 0.0001, 0.25, 0.2999]))
    counts = np.bincount([sample(scores, Options(temperature=1, seed=9), step=s) for s in range(20_000)], minlength=5)
    expected = np.exp(scores) / np.exp(scores).sum() * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # chi-square with 4 degrees, p = 0.001


def test_t23_the_draw_is_the_inverse_of_the_cumulated_probabilities() -> None:
    scores = np.log(np.array([0.1, 0.2, 0.3, 0.4]))
    for step in range(200):
        expected = int(np.searchsorted([0.1, 0.3, 0.6], philox.uniform(4, step=step), side="right"))
        assert sample(scores, Options(temperature=1, seed=4), step=step) == expected


def test_t19_greedy_takes_the_lowest_of_equals() -> None:
    assert sample(np.array([1, 3, 3, 2], np.float32), Options(), step=0) == 1
    assert sample(np.array([1, 3, 3, 2], np.float16), Options(), step=5) == 1


def test_a_tie_at_the_kth_place_is_kept_and_a_tie_in_the_nucleus_goes_to_the_lower_id() -> None:
    scores = np.array([0.0, 1.0, 2.0, 1.0])
    assert kept(scores, Options(temperature=1, top_k=2))[0].tolist() == [1, 2, 3]
    assert kept(scores, Options(temperature=1, top_p=0.6))[0].tolist() == [1, 2]
    assert kept(scores, Options(temperature=1, top_p=0.0))[0].tolist() == [2]
    assert kept(np.zeros(4), Options(temperature=1, top_p=0.0))[0].tolist() == [0]


def test_t18_the_penalty_weakens_once_whatever_the_sign() -> None:
    scores = np.array([2.0, 1.5, -1.0, -1.5], np.float32)
    penalty = Options(repetition_penalty=2.0)
    assert sample(scores, penalty, history=[0, 0, 0, 99, -1], step=0) == 1
    assert sample(scores[2:], penalty, history=[0], step=0) == 1


def test_the_callers_logits_are_left_alone() -> None:
    scores = np.array([2.0, 1.5, -1.0])
    sample(scores, Options(temperature=0.5, repetition_penalty=2.0), history=[0], step=0)
    assert scores.tolist() == [2.0, 1.5, -1.0]


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_extreme_temperatures_are_no_accident(temperature: float) -> None:
    scores = np.array([5.0, 7.0, -np.inf, 7.0])
    assert sample(scores, Options(temperature=temperature), step=0) in ((1, 3) if temperature < 1 else (0, 1, 3))


def test_excluded_ids_are_never_drawn() -> None:
    scores = np.full(50, -np.inf)
    scores[17] = -3.0
    assert {sample(scores, Options(temperature=2, seed=s), step=s) for s in range(50)} == {17}


def test_seeds_and_steps_decide_the_draw() -> None:
    scores, hot = np.zeros(1000), {"temperature": 1.0}
    seeds = [1, 2, (1 << 32) + 1, (1 << 53) + 1, (1 << 64) - 1]
    chosen = [[sample(scores, Options.merge(hot, {"seed": s}), step=i) for i in range(8)] for s in seeds]
    assert len({tuple(tokens) for tokens in chosen}) == len(seeds)
    assert chosen == [[sample(scores, Options.merge(hot, {"seed": s}), step=i) for i in range(8)] for s in seeds]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("scores", "message"), [([1, np.nan], "nan"), ([1, np.inf], "inf"), ([-np.inf] * 2, "exclude")]
)
def test_t24_useless_logits_are_the_graphs_fault(scores: list[float], message: str, temperature: float) -> None:
    with pytest.raises(BackendError, match=message):
        sample(np.array(scores, np.float32), Options(temperature=temperature), step=0)


@pytest.mark.parametrize("shape", [(0,), (2, 3), ()])
def test_logits_are_one_vector(shape: tuple[int, ...]) -> None:
    with pytest.raises(BackendError, match="one vector"):
        sample(np.zeros(shape, np.float32), Options(), step=0)


def test_merge_prefers_what_is_given() -> None:
    options = Options.merge({"temperature": 0.8, "top_k": 40, "stop": "END"}, {"top_k": np.int64(5), "seed": None})
    assert options == Options(temperature=0.8, top_k=5, stop=("END",))
    assert Options.merge({}, {}) == Options(None, 0.0, 0, 1.0, 0.0, 1.0, 0, ())
    assert Options.merge({}, {"stop": ["a", "b"], "temperature": 1}).stop == ("a", "b")
    assert Options.merge({}, {"temperature": np.array([0.5], np.float32)[0]}).temperature == 0.5


REFUSED: list[tuple[str, Any, str]] = [
    ("max_tokens", -1, "0 or more"),
    ("max_tokens", 1.5, "an integer"),
    ("temperature", -0.1, "0 or more"),
    ("temperature", float("nan"), "0 or more"),
    ("temperature", float("inf"), "0 or more"),
    ("temperature", "hot", "a number"),
    ("top_k", -1, "0 .off. or more"),
    ("top_k", True, "an integer"),
    ("top_p", 1.01, "0 to 1"),
    ("min_p", -1e-9, "to 1"),
    ("repetition_penalty", 0, "above 0"),
    ("seed", -1, "0 to 2.64-1"),
    ("seed", 1 << 64, "0 to 2.64-1"),
    ("stop", [""], "none empty"),
    ("stop", ["a\ufffd"], "FFFD"),
    ("stop", [1], "list of strings"),
    ("stop", 7, "list of strings"),
    ("typical_p", 1.5, "0 to 1"),
    ("frequency_penalty", float("nan"), "a finite number"),
    ("presence_penalty", "1", "a finite number"),
    ("no_repeat_ngram_size", -1, "0 .off. or more"),
    ("min_tokens", 0.5, "an integer"),
    ("logit_bias", {-1: 1.0}, "ids of 0 or more"),
    ("logit_bias", {3: float("inf")}, "finite numbers"),
    ("logit_bias", [7], "id: number"),
    ("bad_words", [""], "none empty"),
    ("bad_words", [[1], []], "none empty"),
    ("bad_words", [[1.5]], "lists of ids"),
    ("ignore_eos", 1, "true or false"),
    ("logprobs", True, "an integer"),
    ("n", 0, "1 or more"),
    ("best_of", 0, "1 or more"),
    ("num_beams", 0, "1 .off. or more"),
    ("num_beam_groups", 0, "1 .off. or more"),
    ("diversity_penalty", -1, "0 .off. or more"),
    ("length_penalty", float("inf"), "a finite number"),
    ("early_stopping", "always", "'never'"),
    ("early_stopping", 1, "'never'"),
]


@pytest.mark.parametrize(("name", "value", "expected"), REFUSED)
def test_an_option_out_of_range_is_named_with_its_range(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} is .*takes .*{expected}"):
        Options.merge({}, {name: value})


def test_options_may_come_as_json_has_them() -> None:
    options = Options.merge({}, {"logit_bias": {"7": -1}, "bad_words": ["no", [3, 4]], "early_stopping": False})
    assert options.logit_bias == ((7, -1.0),)
    assert options.bad_words == ("no", (3, 4))
    assert Options.merge({}, {"bad_words": "no"}).bad_words == ("no",)
    assert options.replaced({"top_k": 3}) == Options.merge(
        {}, {"top_k": 3, "logit_bias": {7: -1}, "bad_words": ["no", [3, 4]]}
    )


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"n": 3, "best_of": 2, "temperature": 1}, "best_of"),
        ({"n": 3, "num_beams": 2}, "n"),
        ({"best_of": 3, "num_beams": 4}, "best_of"),
        ({"num_beams": 2, "temperature": 0.5}, "num_beams"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "n"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups"),
        ({"num_beams": 4, "diversity_penalty": 0.5}, "diversity_penalty"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(given: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options.merge({}, given)
    assert caught.value.where == f"option {name}"
    assert caught.value.hint


def test_an_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'temprature'.*Did you mean 'temperature'"):
        Options.merge({}, {"temprature": 1})
    with pytest.raises(UsageError, match=", ".join(OPTIONS)):
        Options.merge({}, {"qqq": 1})


@pytest.mark.parametrize("options", [{}, {"top_k": 40, "top_p": 0.9}, {"top_p": 0.9}, {"min_p": 0.05}], ids=str)
def test_a_large_vocabulary_is_not_sorted(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scores, sizes, argsort = np.random.default_rng(0).normal(size=150_000) * 3, [0], np.argsort

    def noting(values: Floats, **options: Any) -> NDArray[np.intp]:
        sizes.append(values.size)
        return argsort(values, **options)

    monkeypatch.setattr(np, "argsort", noting)
    sample(scores, Options.merge({"temperature": 1.0}, options), step=0)
    assert sum(sizes) < 30_000
