# SPDX-License-Identifier: Apache-2.0
"""Block quantisation of a matrix [N, K] along K: the arithmetic alone.

Round to nearest, as ONNX Runtime's own quantiser does it (`matmul_nbits_quantizer`, its kernels in MLAS), so that a
bundle holds the very numbers that its users get elsewhere. An element q of a block stands for (q - zero) * scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SMALLEST, LARGEST = 16, 256
"""Elements of a block: the powers of two that `MatMulNBits` takes."""


@dataclass(frozen=True)
class BlockForm:
    """How a weight is quantised. `bits` is 4 or 8; `symmetric` has all zeros in the middle of the range."""

    bits: int
    block: int
    symmetric: bool

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class Blocks:
    """Rows of a quantised matrix.

    values: u8[n, K * bits / 8], two elements of four bits in a byte, the low half first. scales: f32[n, K / block].
    zeros: u8[n, K / block], one in each byte.
    """

    values: Bytes
    scales: Floats
    zeros: Bytes


def fitting_block(length: int, wanted: int) -> int | None:
    """The largest block of at most `wanted` elements that divides a row of `length`; None where there is none."""
    block = wanted
    while block >= SMALLEST:
        if length % block == 0:
            return block
        block //= 2
    return None


def quantise(rows: Floats, form: BlockForm) -> Blocks:
    """Quantise rows f32[n, K]; K is a multiple of the block."""
    count, length = rows.shape
    parts = rows.reshape(count, length // form.block, form.block)
    low, high = parts.min(axis=2), parts.max(axis=2)
    if form.symmetric:
        scales = np.where(np.abs(high) > np.abs(low), high, low) / np.float32(-form.middle)
        zeros = np.full(scales.shape, form.middle, np.uint8)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = (high - low) / np.float32(form.top)
        with np.errstate(divide="ignore", invalid="ignore"):
            zeros = _rounded(np.where(scales == 0, 0, -low / scales), form.top)
    with np.errstate(divide="ignore", over="ignore"):
        factors = np.where(scales == 0, 0, 1 / scales).astype(np.float32)
    values = parts * factors[..., None]
    values += zeros[..., None]
    return Blocks(pack(_rounded(values, form.top).reshape(count, length), form.bits), scales, zeros)


def _rounded(values: Floats, top: int) -> Bytes:
    """To the nearest integer of 0 to `top`, halves up (C's roundf, not NumPy's halves to even)."""
    clipped = np.clip(values, 0, top, out=values)
    whole = clipped.astype(np.uint8)
    clipped -= whole
    whole += clipped >= 0.5
    return whole


def dequantise(blocks: Blocks, form: BlockForm) -> Floats:
    """The numbers f32[n, K] that the blocks stand for, as DequantizeLinear gives them."""
    values = unpack(blocks.values, form.bits)
    count, length = values.shape
    parts = values.reshape(count, length // form.block, form.block).astype(np.float32)
    parts -= blocks.zeros.astype(np.float32)[..., None]
    parts *= blocks.scales[..., None]
    return parts.reshape(count, length)


def pack(values: Bytes, bits: int) -> Bytes:
    """u8[n, m] of one element a byte as u8[n, ceil(m * bits / 8)]; an odd row of four bits ends with a zero."""
    if bits == 8:
        return np.ascontiguousarray(values)
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    return np.left_shift(values[:, 1::2], 4) | values[:, ::2]


def unpack(packed: Bytes, bits: int, length: int | None = None) -> Bytes:
    """The reverse of `pack`, without the padding of an odd row where `length` is given."""
    if bits == 8:
        return packed
    values: NDArray[Any] = np.empty((packed.shape[0], 2 * packed.shape[1]), np.uint8)
    values[:, ::2] = packed & 15
    values[:, 1::2] = packed >> 4
    return values[:, :length]
