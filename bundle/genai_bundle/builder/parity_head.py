# SPDX-License-Identifier: Apache-2.0
"""Compare a head's graph with the reference: over a text, from the hidden states that the decoder's graph gives, and
behind it, from its own. Knows nothing of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from genai_bundle.builder.parity import TOLERANCE, Array, Decoder, difference
from genai_bundle.errors import ProofError

CHECKS = ("hidden states of prefill and cached steps", "logits in pieces", "guesses from its own hidden states")

HIDDEN, BEFORE = "hidden", "hidden_before"
"""The output of both graphs, and the input of the head's."""


class Guessed(Protocol):
    """What `reference_head.Guessed` offers. A protocol, so that this module needs no torch."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def logits(self) -> NDArray[np.float32]: ...
    @property
    def guesses(self) -> tuple[int, ...]: ...
    @property
    def guessed(self) -> NDArray[np.float32]: ...


def check_head(decoder: Decoder, head: Decoder, answers: Sequence[Guessed]) -> float:
    """The largest difference of a logit. Raises ProofError beyond TOLERANCE."""
    decoder.also = head.also = (HIDDEN,)
    return max(_check(decoder, head, answer) for answer in answers)


def _check(decoder: Decoder, head: Decoder, answer: Guessed) -> float:
    count, half = len(answer.ids), len(answer.ids) // 2
    hidden = _follow(decoder, answer.ids, [0, half, half + 1, count])
    head.reset(1)
    rows = []
    for begin, end in pairwise([1, half, half + 1, count]):  # its states lack the first token
        head.beside = {BEFORE: hidden[:, begin - 1 : end - 1]}
        rows.append(head.step(answer.ids[begin:end], begin - 1, end - begin))
    worst = _compare("over a text", np.concatenate(rows), answer.logits)
    rows = []
    for held, token in enumerate(answer.guesses, start=count - 1):
        head.beside = {BEFORE: head.found[HIDDEN][:, -1:]}
        rows.append(head.step([token], held, 1))
    return max(worst, _compare("behind its own guesses", np.concatenate(rows), answer.guessed))


def _follow(decoder: Decoder, ids: Sequence[int], cuts: Sequence[int]) -> Array:
    """The hidden states of a text that is run in pieces."""
    decoder.reset(1)
    found = []
    for begin, end in pairwise(cuts):
        decoder.step(ids[begin:end], begin, 1)
        found.append(decoder.found[HIDDEN])
    return np.concatenate(found, axis=1)


def _compare(check: str, got: Array, expected: Array) -> float:
    if got.shape != expected.shape:
        raise ProofError(
            f"the head {check}: logits have the shape {got.shape}, expected {expected.shape}", where="head"
        )
    worst, place = difference(got, expected)
    if not worst <= TOLERANCE:
        message = f"the head {check}: differs from transformers' by {worst:.3g} at position {place[0]}"
        raise ProofError(f"{message}, allowed are {TOLERANCE:g}", where="head")
    return worst
