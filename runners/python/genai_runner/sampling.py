# SPDX-License-Identifier: Apache-2.0
"""How logits become one token. Normative text: spec/ops/sample.md.

The order is fixed: processors, temperature, top-k, top-p, min-p, typical-p, draw.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genai_bundle.errors import BackendError

from . import philox
from .options import OPTIONS, Options
from .processors import Ids, Processor, Scores, changes_scores, penalise, processed

__all__ = ["OPTIONS", "Options", "kept", "penalise", "processed", "sample"]


def sample(
    logits: ArrayLike,
    options: Options,
    *,
    history: Ids = (),
    prompt_length: int | None = None,
    eos: Collection[int] = (),
    processors: Sequence[Processor] = (),
    step: int,
    stream: int = 0,
    row: int = 0,
) -> int:
    """Choose the next token.

    Args:
        logits: f32[V] (any float type), one score for each id of the vocabulary; -inf excludes an id.
        history, prompt_length, eos, processors: as of `processed`.
        step: how many draws this request has made on `stream`; with the seed it decides the random number.
        row: which of several answers to one prompt this is.

    Raises:
        BackendError: the logits hold NaN or +inf, or exclude every id.
        UsageError: as of `processed`.
    """
    scores: NDArray[Any] = np.asarray(logits)
    changed = changes_scores(options, processors)
    if options.temperature == 0.0 and not changed:
        return _greedy(scores.astype(np.float32) if scores.dtype.kind != "f" else scores)
    scores = np.array(scores, dtype=np.float64)
    if changed:
        _greedy(scores)  # whether the graph gave scores at all
        scores = processed(scores, options, history, prompt_length, eos, processors)
    if options.temperature == 0.0:
        return _greedy(scores)
    ids, weights = kept(scores, options)
    total = np.cumsum(weights)
    drawn = philox.uniform(options.seed, step=step, stream=stream, row=row) * total[-1]
    # The product may round up to the total itself: then the draw belongs to the last id that has a weight.
    index = min(int(np.searchsorted(total, drawn, side="right")), int(np.searchsorted(total, total[-1])))
    return int(ids[index])


def kept(scores: Scores, options: Options) -> tuple[NDArray[np.intp], Scores]:
    """What temperature and the filters leave of f64[V]: ascending ids, and their weights (the likeliest of V has 1)."""
    with np.errstate(over="ignore", invalid="ignore"):
        peak = scores[_greedy(scores)]
        scaled = (scores - peak) / options.temperature  # shifted first: a tiny temperature must not overflow
    ids: NDArray[np.intp] = np.arange(scaled.size)
    if 0 < options.top_k < scaled.size:
        ids = _largest(scaled, options.top_k)
        scaled = scaled[ids]
    weights = np.exp(scaled)
    if options.top_p < 1.0:
        chosen = np.sort(_reaching(weights, weights, options.top_p))
        ids, weights, scaled = ids[chosen], weights[chosen], scaled[chosen]
    if options.min_p > 0.0:
        chosen = np.flatnonzero(weights >= options.min_p)  # the largest weight is exp(0) = 1
        ids, weights, scaled = ids[chosen], weights[chosen], scaled[chosen]
    if options.typical_p < 1.0:
        chosen = _typical(weights, scaled, options.typical_p)
        ids, weights = ids[chosen], weights[chosen]
    return ids, weights


def _typical(weights: Scores, scaled: Scores, typical_p: float) -> NDArray[np.intp]:
    """Ascending indices of those whose surprise is nearest to the mean surprise, and hold `typical_p` of the sum."""
    total = weights.sum()
    surprise = np.log(total) - scaled
    some = weights > 0.0
    mean = (weights[some] / total * surprise[some]).sum()
    distance = np.abs(surprise - mean)
    last = _reaching(-distance, weights, typical_p)[-1]
    return np.flatnonzero(distance <= distance[last])


def _reaching(order_by: Scores, weights: Scores, share: float) -> NDArray[np.intp]:
    """Indices from the largest of `order_by` on, as few as their weights sum to `share` of all (at least one).

    Only as many are sorted as the set can need: sorting a whole vocabulary takes longer than everything else here
    together.
    """
    goal = share * np.cumsum(weights)[-1]
    size = weights.size
    count = 32
    while True:
        count = min(count * 8, size)
        candidates = _largest(order_by, count)
        # Stable: of equals the lower id comes first.
        order = candidates[np.argsort(-order_by[candidates], kind="stable")]
        sums = np.cumsum(weights[order])
        if count == size or sums[-1] >= goal:
            needed = min(int(np.searchsorted(sums, goal)) + 1, order.size)
            return order[:needed]


def _largest(values: Scores, count: int) -> NDArray[np.intp]:
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


def _cut(values: Scores, count: int) -> NDArray[np.intp]:
    return np.flatnonzero(values >= np.partition(values, -count)[-count])


def _greedy(scores: NDArray[Any]) -> int:
    """The id of the largest score, the lowest of equals."""
    if scores.ndim != 1 or scores.size == 0:
        raise BackendError(f"logits have the shape {list(scores.shape)}, but one vector [V] is expected")
    best = int(np.argmax(scores))  # a NaN counts as the largest
    if not math.isfinite(scores[best]):
        what = "exclude every id" if scores[best] == -math.inf else f"hold {scores[best]} at id {best}"
        raise BackendError(f"logits {what}", hint="The graph computed no scores: check its inputs and its precision")
    return best
