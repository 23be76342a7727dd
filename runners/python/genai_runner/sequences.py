# SPDX-License-Identifier: Apache-2.0
"""What an answer of a request holds, and the probabilities of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .backends.base import Array
from .replies import Reply


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The logarithm of the probability that the model itself, before any option, gave a token.

    top: the likeliest ids with theirs, as many as the option `logprobs` asked for; of equals the lower id first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sequence:
    """One of a request's answers.

    logprobs: one for each of `tokens`, where the option asked for them. score: by which it was chosen among others:
    with `best_of` the mean logprob of its tokens, with beams the sum of theirs over their number to the
    `length_penalty`. reply: the parts of the text, where the bundle has a chat template.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    score: float | None = None
    reply: Reply | None = None


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """f64[V]: the logarithms of the probabilities."""
    scores: NDArray[np.float64] = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    return scores


def logprob_of(logits: Array, token: int, count: int) -> TokenLogprob:
    """What the model gives `token` and the `count` likeliest."""
    scores = log_softmax(logits)
    count = min(count, scores.size)
    least = np.partition(scores, -count)[-count] if count else np.inf
    best = np.flatnonzero(scores >= least)
    order = best[np.argsort(-scores[best], kind="stable")][:count]
    return TokenLogprob(token, float(scores[token]), tuple((int(id_), float(scores[id_])) for id_ in order))
