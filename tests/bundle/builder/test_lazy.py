# SPDX-License-Identifier: Apache-2.0
"""What is read of a joined, cut or turned weight, in parts and whole, is what NumPy makes of the arrays themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.torch

from genai_bundle.builder import lazy  # noqa: E402
from genai_bundle.builder.safetensors import StoredTensor  # noqa: E402

PARTS = [slice(None), slice(0, 0), slice(1, 4), slice(3, 100), slice(0, 1)]


def weight(*shape: int, start: int = 0) -> tuple[lazy.Weight, Any]:
    array = np.arange(start, start + int(np.prod(shape)), dtype="<f4").reshape(shape)
    return lazy.stored_weight(StoredTensor("w", "f", "F32", shape, memoryview(array.tobytes()))), array


def check(made: lazy.Weight, expected: Any) -> None:
    assert made.shape == expected.shape
    for part in PARTS:
        np.testing.assert_array_equal(made.rows(part), expected[part])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_stacked(axis: int) -> None:
    (a, x), (b, y), (c, z) = weight(5, 2), weight(5, 2, start=50), weight(5, 2, start=90)
    check(lazy.stack([a, b, c], axis), np.stack([x, y, z], axis))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenated(axis: int) -> None:
    (a, x), (b, y) = weight(3, 3), weight(3, 3, start=50)
    check(lazy.concatenate([a, b, a], axis), np.concatenate([x, y, x], axis))


@pytest.mark.parametrize(("axis", "count"), [(0, 2), (0, 3), (1, 2)])
def test_cut_as_torch_would(axis: int, count: int) -> None:
    whole, x = weight(7, 4)
    length = -(-x.shape[axis] // count)
    bounds = [length * index for index in range(1, count)]
    for made, expected in zip(lazy.chunks(whole, axis, count), np.split(x, bounds, axis), strict=True):
        check(made, expected)


@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (-1, -2)])
def test_turned(axes: tuple[int, int]) -> None:
    whole, x = weight(5, 2, 3)
    check(lazy.turned(whole, *axes), x.swapaxes(*axes))


def test_one_after_another() -> None:
    (a, x), (b, y) = weight(4, 3), weight(4, 3, start=50)
    made = lazy.concatenate([lazy.stack([a, b], 0), lazy.stack([b, a], 0)], 1)
    check(made, np.concatenate([np.stack([x, y]), np.stack([y, x])], 1))
