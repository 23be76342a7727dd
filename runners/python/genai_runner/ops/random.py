# SPDX-License-Identifier: Apache-2.0
"""The operations of the family `random`: normal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import philox
from . import Env, Value
from .core import dims_of, integer

_WORD = philox.WORD


def normal_1(
    env: Env, *, shape: Value, stream: Value = 1, seed: Value = None, step: Value = None
) -> dict[str, NDArray[Any]]:
    """Standard normal noise: y, f32 of `shape`. Unbound, `seed` is the request's and `step` counts the draws."""
    op = "random.normal@1"
    dims = dims_of(op, shape)
    number = integer(op, "stream", stream, low=0, high=_WORD)
    at = env.step(number) if step is None else integer(op, "step", step, low=0, high=_WORD)
    chosen = env.options.seed if seed is None else integer(op, "seed", seed, low=0, high=(1 << 64) - 1)
    return {"y": np.asarray(philox.normal(chosen, dims, step=at, stream=number))}
