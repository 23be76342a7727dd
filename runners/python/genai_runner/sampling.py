# SPDX-License-Identifier: Apache-2.0
"""How logits become one token.

The order is fixed: repetition penalty, temperature, top-k, top-p, min-p, draw. Normative text: spec/ops/sample.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genai_bundle.errors import BackendError

from . import philox
from .options import OPTIONS, Options

__all__ = ["OPTIONS", "Options", "kept", "penalise", "sample"]

Ids = Sequence[int] | NDArray[np.integer[Any]]


def sample(logits: ArrayLike, options: Options, *, history: Ids = (), step: int, stream: int = 0, row: int = 0) -> int:
    """Choose the next token.

    Args:
        logits: f32[V] (any float type), one score for each id of the vocabulary; -inf excludes an id.
        history: the ids that `repetition_penalty` looks at; ids outside the vocabulary are ignored.
        step: how many draws this request has made on `stream`; with the seed it decides the random number.

    Raises:
        BackendError: the logits hold NaN or +inf, or exclude every id.
    """
    if options.temperature == 0.0 and options.repetition_penalty == 1.0:
        scores: NDArray[Any] = np.asarray(logits)
        return _greedy(scores.astype(np.float32) if scores.dtype.kind != "f" else scores)
    penalised = penalise(np.array(logits, dtype=np.float64), history, options.repetition_penalty)
    if options.temperature == 0.0:
        return _greedy(penalised)
    ids, weights = kept(penalised, options)
    total = np.cumsum(weights)
    drawn = philox.uniform(options.seed, step=step, stream=stream, row=row) * total[-1]
    # The product may round up to the total itself: then the draw belongs to the last id that has a weight.
    index = min(int(np.searchsorted(total, drawn, side="right")), int(np.searchsorted(total, total[-1])))
    return int(ids[index])


def kept(scores: NDArray[np.float64], options: Options) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """What temperature, top-k, top-p and min-p leave of f64[V]: ascending ids, and their weights (the largest is 1)."""
    with np.errstate(over="ignore", invalid="ignore"):
        peak = scores[_greedy(scores)]
        scaled = (scores - peak) / options.temperature  # shifted first: a tiny temperature must not overflow
    ids: NDArray[np.intp] = np.arange(scaled.size)
    if 0 < options.top_k < scaled.size:
        ids = _largest(scaled, options.top_k)
        scaled = scaled[ids]
    weights = np.exp(scaled)
    if options.top_p < 1.0:
        chosen = _nucleus(weights, options.top_p)
        ids, weights = ids[chosen], weights[chosen]
    if options.min_p > 0.0:
        chosen = np.flatnonzero(weights >= options.min_p)  # the largest weight is exp(0) = 1
        ids, weights = ids[chosen], weights[chosen]
    return ids, weights


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Ascending indices of the smallest set of the largest weights that reaches `top_p` of their sum (at least one).

    Only as many of the largest weights are sorted as the set can need: sorting a whole vocabulary takes longer than
    everything else here together.
    """
    goal = top_p * np.cumsum(weights)[-1]
    size = weights.size
    count = 32
    while True:
        count = min(count * 8, size)
        candidates = _largest(weights, count)
        # Stable: of equal weights the lower id comes first.
        order = candidates[np.argsort(-weights[candidates], kind="stable")]
        sums = np.cumsum(weights[order])
        if count == size or sums[-1] >= goal:
            needed = min(int(np.searchsorted(sums, goal)) + 1, order.size)
            return np.sort(order[:needed])


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Ascending indices of the `count` largest values and of all that equal the last of them."""
    if count >= values.size:
        return np.arange(values.size)
    width = 64
    if count * width * 4 < values.size:
        # The count-th largest of the rows' maxima is a lower bound that few values pass, and cheap to find.
        rows = values[: values.size // width * width].reshape(-1, width).max(axis=1)
        passing = np.flatnonzero(values >= np.partition(rows, -count)[-count])
        return passing[_largest(values[passing], count)] if passing.size < values.size // 2 else _cut(values, count)
    return _cut(values, count)


def _cut(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    return np.flatnonzero(values >= np.partition(values, -count)[-count])


def penalise(scores: NDArray[np.float64], history: Ids, penalty: float) -> NDArray[np.float64]:
    """Weaken the ids of `history` in place: a negative score times the penalty, another one divided by it."""
    if penalty != 1.0:
        seen = np.asarray(history, dtype=np.int64).reshape(-1)
        seen = seen[(seen >= 0) & (seen < scores.size)]
        old = scores[seen]
        scores[seen] = np.where(old < 0, old * penalty, old / penalty)  # repeated ids write the same value again
    return scores


def _greedy(scores: NDArray[Any]) -> int:
    """The id of the largest score, the lowest of equals."""
    if scores.ndim != 1 or scores.size == 0:
        raise BackendError(f"logits have the shape {list(scores.shape)}, but one vector [V] is expected")
    best = int(np.argmax(scores))  # a NaN counts as the largest
    if not np.isfinite(scores[best]):
        what = "exclude every id" if scores[best] == -math.inf else f"hold {scores[best]} at id {best}"
        raise BackendError(f"logits {what}", hint="The graph computed no scores: check its inputs and its precision")
    return best
