# SPDX-License-Identifier: Apache-2.0
"""The bound that a golden vector has for an engine's reduced arithmetic. Knows no engine."""

from __future__ import annotations

from math import floor, inf, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARE = 0.5
"""Of the spread of a model's scores: how far one may be off.

Activations of eight bits moved a score of models with 260 thousand and 6 million parameters by 0.04 and 0.06 of the
spread at most; deeper models add up more. Among the scores of a wrong graph the expected one lies several spreads below
the best.
"""


def fast_bound(values: NDArray[Any]) -> float:
    """The largest power of two within SHARE of the spread along the last axis, in the mean over the others.

    The spread is half of what lies between the 16th and the 84th percentile, for normal values their deviation; a few
    that are masked out do not count.

    It is made of what the source model gives and not of a measurement of an engine: that varies with the processor, and
    with the engine. Rounded down to a power of two, it is the same wherever the bundle is built.
    """
    low, high = np.percentile(np.asarray(values, np.float64), (16, 84), axis=-1)
    spread = float((high - low).mean()) / 2
    return 2.0 ** floor(log2(SHARE * spread)) if 0 < spread < inf else 0.0
