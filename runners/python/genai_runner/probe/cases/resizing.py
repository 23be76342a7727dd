# SPDX-License-Identifier: Apache-2.0
"""Resize with antialias=1, written out: a filter that is as many times wider as the picture gets smaller."""

from __future__ import annotations

import numpy as np

from ...backends.base import Array

CUBIC = -0.75


def antialiased(picture: Array, sizes: tuple[int, int], mode: str) -> Array:
    """`picture` [..., H, W] at the given size, by "linear" or "cubic" (a = -0.75), coordinates of half pixels."""
    wide = picture.astype(np.float64)
    for axis, size in zip((-2, -1), sizes, strict=True):
        wide = np.moveaxis(np.moveaxis(wide, axis, -1) @ _matrix(picture.shape[axis], size, mode), -1, axis)
    return wide.astype(np.float32)


def _matrix(before: int, after: int, mode: str) -> Array:
    """The share of each old place [before] in each new one [after]."""
    stretch = max(1.0, before / after)
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    reach = int(np.ceil(2 * stretch)) + 1
    places = np.arange(-reach, before + reach)
    shares = _kernel((places[:, None] - centres) / stretch, mode)
    shares /= shares.sum(0)
    folded = np.zeros((before, after))
    np.add.at(folded, np.clip(places, 0, before - 1), shares)  # beyond the edge lies the edge's own value
    return folded


def _kernel(x: Array, mode: str) -> Array:
    x = np.abs(x)
    if mode == "linear":
        return np.asarray(np.maximum(0, 1 - x))
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC
    return np.asarray(np.where(x < 1, near, np.where(x < 2, far, 0)))
