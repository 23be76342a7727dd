# SPDX-License-Identifier: Apache-2.0
"""A quantised weight on its way into the bundle: computed a few rows at a time, kept in a spool, seen in several forms.

All forms are views of the same bytes, so a shard holds them once (spec/graphs.md, Stored weights).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_bundle.builder.storage.blocks import BlockForm, Blocks, dequantise, pack, quantise, unpack
from genai_bundle.builder.storage.plan import Choice
from genai_bundle.builder.storage.spool import Spool
from genai_bundle.builder.tensors import WeightTensor
from genai_bundle.errors import SourceError

_SLICE = 1 << 20
"""Elements that are converted at a time: 4 MB of float32, and a few times that while they are rounded."""


@dataclass(frozen=True)
class Packed:
    """A weight of the shape `shape`, quantised along its last axis; `turned`: along the first of two, as [N, K].

    `values`, `scales` and `zeros` are its ranges in the spool: u8[rows, K * bits / 8], f32[rows, K / block] and
    u8[rows, ceil(K / block * bits / 8)].
    """

    name: str
    shape: tuple[int, ...]
    form: BlockForm
    turned: bool
    spool: Spool
    values: int
    scales: int
    zeros: int

    @property
    def outer(self) -> tuple[int, ...]:
        """The axes before the quantised one."""
        return (self.shape[1],) if self.turned else self.shape[:-1]

    @property
    def length(self) -> int:
        """The quantised axis, K."""
        return self.shape[0] if self.turned else self.shape[-1]

    @property
    def count(self) -> int:
        """Blocks of a row."""
        return self.length // self.form.block

    @property
    def nbytes(self) -> int:
        """Bytes in the bundle; the zeros of the symmetric form are the same for all weights of a size."""
        zeros = 0 if self.form.symmetric else self._width(self.count)
        return prod(self.outer) * (self._width(self.length) + 4 * self.count + zeros)

    def packed_values(self) -> ir.TensorProtocol:
        """UINT8 [..., K * bits / 8]: for operators that gather rows."""
        return self._bytes(self.values, (*self.outer, self._width(self.length)), "packed")

    def block_values(self) -> ir.TensorProtocol:
        """UINT8 [N, K / block, block * bits / 8], for MatMulNBits."""
        return self._bytes(self.values, (*self.outer, self.count, self._width(self.form.block)), "blocks")

    def typed_values(self) -> ir.TensorProtocol:
        """UINT4 or UINT8 [..., K], for DequantizeLinear."""
        raw = self._read(self.values, self._width(self.length))
        return self._typed(raw, (*self.outer, self.length), "quantized")

    def scale_values(self) -> ir.TensorProtocol:
        """FLOAT [..., K / block]."""
        raw = np.frombuffer(self.spool.view(self.scales, prod(self.outer) * self.count * 4), np.float32)
        return ir.Tensor(raw.reshape(*self.outer, self.count), name=f"{self.name}.scales")

    def packed_zeros(self) -> ir.TensorProtocol:
        """UINT8 [..., ceil(K / block * bits / 8)]: rows begin at bytes."""
        return self._bytes(self.zeros, (*self.outer, self._width(self.count)), "zeros.packed")

    def typed_zeros(self) -> ir.TensorProtocol:
        """UINT4 or UINT8 [..., K / block], for DequantizeLinear. An odd row of four bits ends within a byte."""
        raw = self._read(self.zeros, self._width(self.count))
        if self.form.bits == 4 and self.count % 2:
            raw = pack(unpack(raw, 4, self.count).reshape(1, -1), 4)
        return self._typed(raw, (*self.outer, self.count), "zeros")

    def dequantised(self) -> WeightTensor:
        """What the stored bytes stand for, in the weight's own shape."""

        def rows(part: slice) -> NDArray[Any]:
            if self.turned:
                return self._dequantise(0, prod(self.outer)).T[part]
            start, stop, _ = part.indices(self.shape[0])
            inner = prod(self.shape[1:-1])
            return self._dequantise(start * inner, stop * inner).reshape(-1, *self.shape[1:])

        return WeightTensor(self.name, self.shape, ir.DataType.FLOAT, rows)

    def _dequantise(self, start: int, stop: int) -> NDArray[np.float32]:
        result = np.empty((stop - start, self.length), np.float32)
        step = max(1, _SLICE // self.length)

        def fill(first: int) -> None:
            last = min(first + step, stop)
            scales = self.spool.view(self.scales + first * self.count * 4, (last - first) * self.count * 4)
            blocks = Blocks(
                self._read(self.values, self._width(self.length), first, last),
                np.frombuffer(scales, np.float32).reshape(-1, self.count),
                unpack(self._read(self.zeros, self._width(self.count), first, last), self.form.bits, self.count),
            )
            result[first - start : last - start] = dequantise(blocks, self.form)

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy lets go of the interpreter while it computes
            list(pool.map(fill, range(start, stop, step)))
        return result

    def _width(self, elements: int) -> int:
        return -(-elements * self.form.bits // 8)

    def _read(self, offset: int, width: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        rows = (prod(self.outer) if stop is None else stop) - start
        return np.frombuffer(self.spool.view(offset + start * width, rows * width), np.uint8).reshape(rows, width)

    def _bytes(self, offset: int, shape: tuple[int, ...], suffix: str) -> ir.TensorProtocol:
        raw = np.frombuffer(self.spool.view(offset, prod(shape)), np.uint8)
        return ir.Tensor(raw.reshape(shape), name=f"{self.name}.{suffix}")

    def _typed(self, raw: NDArray[np.uint8], shape: tuple[int, ...], suffix: str) -> ir.TensorProtocol:
        name = f"{self.name}.{suffix}"
        if self.form.bits == 8:
            return ir.Tensor(raw.reshape(shape), name=name)
        return ir.PackedTensor(raw.reshape(-1), ir.DataType.UINT4, shape=shape, name=name)


def spooled(weight: WeightTensor, choice: Choice, spool: Spool) -> Packed:
    """Quantise a weight into the spool, or copy the blocks that it has."""
    shape, form, turned = weight.dims, choice.form, choice.turned
    assert isinstance(form, BlockForm)
    length = shape[0] if turned else shape[-1]
    rows, count = prod(shape) // length, length // form.block
    widths = (length * form.bits // 8, count * 4, -(-count * form.bits // 8))
    places = [spool.reserve(rows * width) for width in widths]
    done = 0
    for blocks in _quantised(weight, choice):
        if not np.isfinite(blocks.scales).all():
            raise SourceError("holds a number that is not finite", where=str(weight.name), hint="Exclude this weight")
        for place, width, data in zip(
            places, widths, (blocks.values, blocks.scales, pack(blocks.zeros, form.bits)), strict=True
        ):
            spool.put(place + done * width, np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        done += len(blocks.values)
    return Packed(weight.name or "", shape, form, turned, spool, *places)


def _quantised(weight: WeightTensor, choice: Choice) -> Iterator[Blocks]:
    """The weight's rows in order, a few at a time."""
    assert isinstance(choice.form, BlockForm)
    if choice.kept is None:
        yield from (quantise(part, choice.form) for part in _slices(weight, choice.turned))
        return
    count, length = choice.kept.shape
    step = max(8, _SLICE // length // 8 * 8)  # words hold up to eight rows
    yield from (choice.kept.rows(start, min(start + step, count)) for start in range(0, count, step))


def _slices(weight: WeightTensor, turned: bool) -> Iterator[NDArray[np.float32]]:
    """The weight as rows f32[n, K] in order, a few at a time."""
    if turned:
        whole = weight.rows(slice(None))  # of a plain weight a view of the mapping
        yield from _cut(whole.T)
        return
    size = prod(weight.dims[1:])
    step = max(1, _SLICE // size)
    for start in range(0, weight.dims[0], step):
        part = weight.rows(slice(start, start + step))
        yield from _cut(part.reshape(-1, part.shape[-1]))


def _cut(matrix: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    step = max(1, _SLICE // matrix.shape[1])
    for start in range(0, len(matrix), step):
        yield np.ascontiguousarray(matrix[start : start + step], np.float32)
