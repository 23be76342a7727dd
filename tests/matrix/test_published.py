# SPDX-License-Identifier: Apache-2.0
"""Trained models give the same tokens on every engine: the sample of this project, and a checkpoint that others use."""

from __future__ import annotations

from pathlib import Path

import pytest

from matrix.tokens import token_differences

pytestmark = pytest.mark.openvino


def test_the_sample(sample: Path) -> None:
    assert token_differences(sample) == []


@pytest.mark.torch
@pytest.mark.parametrize("quantize", [None, "int4"])
def test_stories260k(shared: Path, tmp_path: Path, quantize: str | None) -> None:
    from genai_bundle.builder.build import build
    from genai_bundle.builder.options import BuildOptions

    target = tmp_path / "stories.genai"
    build(shared / "checkpoints" / "stories260K", target, BuildOptions(quantize=quantize), lambda _step: None)
    assert token_differences(target) == []
