# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: what a bundle promises to compute, compared with what it computes here."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from genai_bundle.errors import GenaiError
from genai_bundle.manifest import Output, Test, Tolerance

from .backends.base import Array
from .pipeline import Pipeline
from .values import DTYPES, Value

Compare = Literal["exact", "tokens"] | Tolerance


@dataclass(frozen=True, slots=True)
class TestResult:
    """One output of one golden vector. `difference` is the largest absolute one, None where that has no meaning."""

    __test__ = False  # not a test class of pytest's

    name: str
    output: str
    passed: bool
    difference: float | None
    detail: str


def run_tests(pipeline: Pipeline) -> Iterator[TestResult]:
    """Run every golden vector of the bundle on the pipeline's backend and variant, one result for each output.

    Where a graph was loaded for fast arithmetic, tests that have a bound for that are held to it.
    """
    fast = any(place.precision == "fast" for place in pipeline.placements.values())
    for number, test in enumerate(pipeline.manifest.tests):
        name = test.name or f"tests[{number}]"
        inputs = golden_inputs(pipeline, test)
        expected = {output: _load(pipeline, value, output) for output, value in test.outputs.items()}
        try:
            if fast and test.fast is not None:
                yield from _run_fast(pipeline, name, test, test.fast, inputs, expected)
                continue
            outputs = pipeline(**inputs).outputs
        except GenaiError as error:
            yield from (TestResult(name, output, False, None, str(error)) for output in test.outputs)
            continue
        for output, value in expected.items():
            yield _compare(name, output, pipeline.manifest.outputs[output], test.compare, value, outputs[output])


def golden_inputs(pipeline: Pipeline, test: Test) -> dict[str, Value]:
    """The request of a golden vector."""
    return {key: _load(pipeline, value, key) for key, value in test.inputs.items()}


def _run_fast(
    pipeline: Pipeline,
    name: str,
    test: Test,
    bound: float,
    inputs: Mapping[str, Value],
    expected: Mapping[str, Value],
) -> Iterator[TestResult]:
    """The outputs of a test within its bound for fast arithmetic. Ids are scored, where the ids before are right."""
    if test.compare == "tokens":
        declared = pipeline.manifest.outputs
        for output in (output for output in expected if declared[output].type not in ("text", "bytes")):
            distance = token_distance(pipeline, inputs, np.asarray(expected[output]).flatten().tolist())
            passed = distance <= 2 * bound
            detail = "" if passed else f"an expected id's score is {distance:.3g} below the best, allowed {2 * bound:g}"
            yield TestResult(name, output, passed, distance, detail)
        return
    outputs = pipeline(**inputs).outputs
    for output, value in expected.items():
        one = pipeline.manifest.outputs[output]
        if one.type not in ("text", "bytes"):
            yield _compare(name, output, one, Tolerance(abs=bound), value, outputs[output])


def golden_scores(pipeline: Pipeline, test: Test) -> Iterator[Array]:
    """The logits before each expected id of a test that compares tokens, each after the ids before it."""
    inputs = golden_inputs(pipeline, test)
    for output, value in test.outputs.items():
        if pipeline.manifest.outputs[output].type not in ("text", "bytes"):
            yield from scores(pipeline, inputs, np.asarray(_load(pipeline, value, output)).flatten().tolist())


def score_gaps(pipeline: Pipeline, known: dict[str, list[Array]]) -> dict[str, float]:
    """By the name of a test that compares tokens: the largest difference of a logit from the one in `known`.

    `known` is filled with the logits of the first pipeline that it is given with, which has no difference from itself.
    """
    gaps = {}
    for number, test in enumerate(pipeline.manifest.tests):
        name = test.name or f"tests[{number}]"
        if test.compare != "tokens":
            continue
        try:
            found = list(golden_scores(pipeline, test))
        except GenaiError:  # no `generate` whose logits could be asked for, or a run that fails: `run_tests` says so
            continue
        if name in known:
            gaps[name] = max((score_gap(*pair) for pair in zip(found, known[name], strict=True)), default=0.0)
        else:
            known[name] = found
    return gaps


def score_gap(one: Array, other: Array) -> float:
    """The largest difference of two arrays of logits."""
    differs = one != other  # those that are masked out are equal infinities
    return float(np.abs(one[differs] - other[differs]).max(initial=0.0))


def scores(pipeline: Pipeline, inputs: Mapping[str, Value], tokens: Sequence[int]) -> Iterator[Array]:
    """f64[V]: the logits before each of these ids, where the ids before it are the given ones."""
    decoder = pipeline.generator(**inputs)
    for number in range(len(tokens)):
        if number:
            decoder.append_tokens(tokens[number - 1 : number])
        yield decoder.get_logits().astype(np.float64)


def token_distance(pipeline: Pipeline, inputs: Mapping[str, Value], tokens: Sequence[int]) -> float:
    """How far the scores of these ids are below the best ones at most, each after the ids before it."""
    worst = 0.0
    for token, logits in zip(tokens, scores(pipeline, inputs, tokens), strict=True):
        distance = float(logits.max() - logits[token])
        worst = max(worst, distance if distance >= 0 else np.inf)  # NaN is no distance
    return worst


def _load(pipeline: Pipeline, value: Any, name: str) -> Value:
    """A value of a test: JSON, or the content of the member that it names."""
    if not (isinstance(value, dict) and set(value) == {"file"}):
        return value
    content = pipeline.bundle.read(value["file"])
    if value["file"].endswith(".npy"):
        return np.load(io.BytesIO(content), allow_pickle=False)
    declared = pipeline.manifest.inputs.get(name) or pipeline.manifest.outputs.get(name)
    if declared and declared.type == "bytes":
        return content
    text = content.decode("utf-8")
    return json.loads(text) if declared and declared.type == "messages" else text


def _compare(name: str, output: str, declared: Output, how: Compare, expected: Value, found: Value) -> TestResult:
    if declared.type in ("text", "bytes"):
        same = expected == found
        return TestResult(name, output, same, None, "" if same else f"expected {expected!r:.80}, got {found!r:.80}")
    want = np.asarray(expected, DTYPES[declared.type])
    if found is None or want.shape != found.shape:
        shape = "nothing" if found is None else f"shape {list(found.shape)}"
        return TestResult(name, output, False, None, f"expected shape {list(want.shape)}, got {shape}")
    difference = np.abs(want.astype(np.float64) - found.astype(np.float64))
    largest = float(difference.max(initial=0.0))
    if isinstance(how, str):  # exact and tokens: the same values, tokens being integers
        passed = bool(np.array_equal(want, found))
        detail = "" if passed else f"first difference at {_place(want != found)}"
        return TestResult(name, output, passed, None if how == "tokens" else largest, detail)
    allowed = how.abs + how.rel * np.abs(want.astype(np.float64))
    beyond = ~(difference <= allowed)  # not `>`: NaN must fail
    detail = f"{largest:.3g} at {_place(beyond)}, allowed {how.abs:g}" if beyond.any() else ""
    return TestResult(name, output, not beyond.any(), largest, detail)


def _place(wrong: Any) -> list[int]:
    return [int(i) for i in np.argwhere(wrong)[0]]
