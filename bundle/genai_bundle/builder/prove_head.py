# SPDX-License-Identifier: Apache-2.0
"""Prove the head of a finished bundle on every variant, as `prove` does its decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genai_bundle.builder.exporters import HeadError
from genai_bundle.builder.parity_head import Guessed, check_head
from genai_bundle.builder.prove import decoder_of, on_each
from genai_bundle.errors import ProofError


def prove_head(path: Path, answers: Sequence[Guessed], backend: str | None = None) -> Mapping[str, float]:
    """The largest difference of a logit, by variant; nothing where the bundle has no head. Raises HeadError."""

    def check(pipeline: Any, variant: str) -> float:
        longest = max(len(answer.ids) + len(answer.guesses) for answer in answers) + 1
        decoder, head = (decoder_of(pipeline, name, variant, longest) for name in ("decoder", "head"))
        return check_head(decoder, head, answers)

    def has_head(pipeline: Any, variant: str) -> float:
        return check(pipeline, variant) if "head" in pipeline.manifest.graphs else 0.0

    try:
        return on_each(path, backend, has_head)
    except ProofError as error:
        raise HeadError(error.message, where=error.where) from error
