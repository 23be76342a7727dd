# SPDX-License-Identifier: Apache-2.0
"""Philox4x32-10 against the known answers that its authors publish with Random123 (kat_vectors)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_runner import philox

KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
WORD = st.integers(0, philox.WORD)


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    k0, k1 = words(key)
    c0, c1, c2, c3 = words(counter)
    assert philox.block((k0, k1), (c0, c1, c2, c3)) == words(expected)


@given(key=st.tuples(WORD, WORD), counter=st.tuples(WORD, WORD, WORD), count=st.integers(0, 9))
def test_many_blocks_are_the_single_ones(key: tuple[int, int], counter: tuple[int, int, int], count: int) -> None:
    expected = [philox.block(key, (index, *counter)) for index in range(count)]
    assert philox.blocks(key, count, counter).tolist() == [list(block) for block in expected]


def test_uniform_uses_the_seed_to_its_last_bit() -> None:
    draws = {philox.uniform(seed, step=0) for seed in (0, 1, 1 << 32, (1 << 32) + 1, (1 << 64) - 1)}
    assert len(draws) == 5
    assert all(0 <= draw < 1 for draw in draws)


def test_uniform_differs_by_step_stream_and_row() -> None:
    draws = [philox.uniform(7, step=s, stream=t, row=r) for s in (0, 1, 2) for t in (0, 1, 2) for r in (0, 1, 2)]
    assert len(set(draws)) == 27


def test_uniform_of_the_first_block() -> None:
    x0, x1 = 0x6627E8D5, 0xE169C58D
    assert philox.uniform(0, step=0) == ((x0 >> 5) * 2**26 + (x1 >> 6)) / 2**53


def test_uniform_is_uniform() -> None:
    draws = np.array([philox.uniform(11, step=step) for step in range(20000)])
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square with 19 degrees, p = 0.001


def test_normal_has_the_moments_of_a_normal() -> None:
    noise = philox.normal(5, (4, 250, 100), step=3).astype(np.float64)
    assert abs(noise.mean()) < 0.015
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise**3).mean()) < 0.04
    assert abs((noise**4).mean() - 3) < 0.12


def test_normal_depends_on_the_shape_only_by_its_order() -> None:
    whole = philox.normal(5, (7,), step=0)
    assert whole.dtype == np.float32
    assert philox.normal(5, (2, 3), step=0).tolist() == whole[:6].reshape(2, 3).tolist()
    assert philox.normal(5, (3, 0), step=0).shape == (3, 0)
    assert philox.normal(5, (), step=0) == whole[0]
    assert not np.array_equal(philox.normal(5, (7,), step=1), whole)
