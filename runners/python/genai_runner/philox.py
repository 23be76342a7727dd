# SPDX-License-Identifier: Apache-2.0
"""Philox4x32-10, the counter-based random generator behind `sample@1` and `random.normal@1`.

A counter-based generator has no state to carry: the word is a pure function of (key, counter), so every runner in every
language gives the same draw for the same (seed, stream, step, row) in whatever order it computes them.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
Normative text: spec/ops/random.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF

Words = tuple[int, int, int, int]


def key_of(seed: int) -> tuple[int, int]:
    """The key of a seed in 0..2^64-1: its low and its high 32 bits."""
    return seed & WORD, seed >> 32 & WORD


def block(key: tuple[int, int], counter: Words) -> Words:
    """One block of four 32-bit words. Plain integers: for a single block they are faster than arrays."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & WORD, (p0 >> 32) ^ c3 ^ k1, p0 & WORD
        k0, k1 = k0 + WEYL[0] & WORD, k1 + WEYL[1] & WORD
    return c0, c1, c2, c3


def blocks(key: tuple[int, int], count: int, counter: tuple[int, int, int]) -> NDArray[np.uint32]:
    """The blocks 0..count-1 as u32[count, 4]; `counter` holds the counter's other words (row, step, stream)."""
    word, shift = np.uint64(WORD), np.uint64(32)
    c0 = np.arange(count, dtype=np.uint64)
    c1, c2, c3 = (np.full(count, value, dtype=np.uint64) for value in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & word, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & word
        k0, k1 = k0 + WEYL[0] & WORD, k1 + WEYL[1] & WORD
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def uniform(seed: int, *, step: int, stream: int = 0, row: int = 0) -> float:
    """One number of [0, 1) with 53 random bits, from the first two words of block 0."""
    x0, x1, _, _ = block(key_of(seed), (0, row, step, stream))
    return ((x0 >> 5) * 67108864 + (x1 >> 6)) / 9007199254740992


def normal(seed: int, shape: tuple[int, ...], *, step: int, stream: int = 1, row: int = 0) -> NDArray[np.float32]:
    """Independent standard normal numbers, f32 of `shape`, filled in row-major order, two for each block.

    Source: Box and Muller, "A Note on the Generation of Random Normal Deviates" (1958), computed in f64.
    """
    size = int(np.prod(shape, dtype=np.int64))
    words = blocks(key_of(seed), (size + 1) // 2, (row, step, stream)).astype(np.uint64)
    high, low = words[:, 0::2] >> np.uint64(5), words[:, 1::2] >> np.uint64(6)
    draws = (high * np.uint64(67108864) + low).astype(np.float64) / 9007199254740992.0
    radius = np.sqrt(-2.0 * np.log(1.0 - draws[:, 0]))  # 1 - u, so that the logarithm never meets zero
    angle = 2.0 * np.pi * draws[:, 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[:size].astype(np.float32).reshape(shape)
