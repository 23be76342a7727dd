# SPDX-License-Identifier: Apache-2.0
"""The probe's cases: their answers are what the ONNX reference evaluator and ONNX Runtime say too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from genai_runner.backends.base import LoadOptions, find_backend
from genai_runner.probe import CASES, Case
from genai_runner.probe.trial import attempt
from genai_runner.probe.use import uses

OWN = [case for case in CASES if not case.operator.startswith("com.microsoft.")]
REFERENCE_LACKS = {
    # An operator that ONNX Runtime puts into the standard domain.
    "SimplifiedLayerNormalization": "missing",
}

ORT_LACKS = {
    # As of 1.32: it asks for a row for each query, and has no decoder of pictures.
    "Attention: attn_mask of one row for all queries": "missing",
    "ImageDecoder: PNG": "missing",
}


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 100


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.name)
def test_the_reference_evaluator_gives_the_answer(case: Case) -> None:
    verdict = attempt(case, find_backend("reference"), LoadOptions())
    assert verdict.word == REFERENCE_LACKS.get(case.name, "right"), verdict.detail


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnx_runtime_gives_the_answer(case: Case) -> None:
    verdict = attempt(case, find_backend("onnxruntime"), LoadOptions())
    assert verdict.word == ORT_LACKS.get(case.name, "right"), verdict.detail


@pytest.mark.parametrize("case", [case for case in CASES if case.touches], ids=lambda case: case.name)
def test_a_case_is_found_in_its_own_graph(case: Case) -> None:
    found = [
        use for use in uses(case.model()) if case.operator in ("*", use.operator) and case.touches and case.touches(use)
    ]
    assert found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_answer_that_is_a_little_off_is_wrong(case: Case) -> None:
    """No answer is zero everywhere, nor the same wherever one looks: a wrong engine would be taken for right."""
    outputs = [np.array(one) for one in case.expected]
    assert case.is_right(outputs, "exact")
    for index, one in enumerate(outputs):
        changed = list(outputs)
        changed[index] = ~one if one.dtype == bool else np.roll(one, 1) + one.dtype.type(1)
        assert not case.is_right(changed, "fast")


def test_checked_models_are_valid_onnx() -> None:
    for case in OWN:
        if case.operator != "SimplifiedLayerNormalization":
            onnx.checker.check_model(case.model())
