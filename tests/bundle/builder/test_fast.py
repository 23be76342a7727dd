# SPDX-License-Identifier: Apache-2.0
"""The bound of a golden vector for fast arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from genai_bundle.builder.fast import SHARE, fast_bound


@pytest.mark.parametrize("deviation", [0.01, 0.3, 1.0, 7.3])
def test_it_is_a_power_of_two_below_the_share_of_the_spread(deviation: float) -> None:
    values = np.random.default_rng(5).normal(3.0, deviation, (20, 4000))
    bound = fast_bound(values)
    assert np.log2(bound) == int(np.log2(bound))
    assert bound <= SHARE * deviation * 1.05 < 2.2 * bound


def test_what_is_masked_out_does_not_count() -> None:
    values = np.random.default_rng(5).normal(0.0, 0.7, (3, 1000))
    masked = values.copy()
    masked[:, :50] = -np.inf
    assert fast_bound(masked) == fast_bound(values) == 0.25


@pytest.mark.parametrize("values", [np.zeros((2, 5)), np.full((2, 5), np.nan), np.full((1, 4), -np.inf)])
def test_no_spread_allows_nothing(values: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        assert fast_bound(values) == 0.0
