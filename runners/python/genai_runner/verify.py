# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: what a bundle promises to compute, compared with what it computes here."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from genai_bundle.errors import GenaiError
from genai_bundle.manifest import Output, Test

from .pipeline import Pipeline
from .values import DTYPES, Value


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
    """Run every golden vector of the bundle on the pipeline's backend and variant, one result for each output."""
    for number, test in enumerate(pipeline.manifest.tests):
        name = test.name or f"tests[{number}]"
        inputs = {key: _load(pipeline, value, key) for key, value in test.inputs.items()}
        try:
            outputs = pipeline(**inputs).outputs
        except GenaiError as error:
            yield from (TestResult(name, output, False, None, str(error)) for output in test.outputs)
            continue
        for output, value in test.outputs.items():
            expected = _load(pipeline, value, output)
            yield _compare(name, output, pipeline.manifest.outputs[output], test, expected, outputs[output])


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


def _compare(name: str, output: str, declared: Output, test: Test, expected: Value, found: Value) -> TestResult:
    if declared.type in ("text", "bytes"):
        same = expected == found
        return TestResult(name, output, same, None, "" if same else f"expected {expected!r:.80}, got {found!r:.80}")
    want = np.asarray(expected, DTYPES[declared.type])
    if found is None or want.shape != found.shape:
        shape = "nothing" if found is None else f"shape {list(found.shape)}"
        return TestResult(name, output, False, None, f"expected shape {list(want.shape)}, got {shape}")
    difference = np.abs(want.astype(np.float64) - found.astype(np.float64))
    largest = float(difference.max(initial=0.0))
    if isinstance(test.compare, str):  # exact and tokens: the same values, tokens being integers
        passed = bool(np.array_equal(want, found))
        detail = "" if passed else f"first difference at {_place(want != found)}"
        return TestResult(name, output, passed, None if test.compare == "tokens" else largest, detail)
    allowed = test.compare.abs + test.compare.rel * np.abs(want.astype(np.float64))
    beyond = ~(difference <= allowed)  # not `>`: NaN must fail
    detail = f"{largest:.3g} at {_place(beyond)}, allowed {test.compare.abs:g}" if beyond.any() else ""
    return TestResult(name, output, not beyond.any(), largest, detail)


def _place(wrong: Any) -> list[int]:
    return [int(i) for i in np.argwhere(wrong)[0]]
