# SPDX-License-Identifier: Apache-2.0
"""Quantised weights as the operators read them that dequantise them: the numbers that their blocks stand for.

The same weight has other initializers in each form of a graph; an operator's own inputs and attributes say how they
belong together, whoever made the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from genai_bundle.compare.places import Place, view

if TYPE_CHECKING:
    import onnx

    from genai_bundle.bundle import Bundle

CONTRIB = "com.microsoft"

_BITS: Mapping[int, int] = {TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.UINT8: 8, TensorProto.INT8: 8}
_SIGNED = (TensorProto.INT4, TensorProto.INT8)
_SCALES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Quantised:
    """A matrix of `shape` whose rows are in blocks of `block` elements of `bits` bits, the low half of a byte first.

    An element q stands for (q - zero) * scale. zero: of all blocks, where they have no `zeros` of their own. padded:
    each row of zeros begins at a byte. parts: the names of the initializers, values, scales and zeros.
    """

    values: Place
    scales: Place
    zeros: Place | None
    shape: tuple[int, int]
    bits: int
    block: int
    signed: bool
    zero: int
    padded: bool
    parts: tuple[str, ...] = field(compare=False)

    def rows(self, bundle: Bundle, start: int, stop: int) -> NDArray[np.float64]:
        """Some rows as numbers."""
        count, length = self.shape
        width, blocks = length * self.bits // 8, length // self.block
        raw = np.frombuffer(view(bundle, self.values), np.uint8)[start * width : stop * width]
        values = self._elements(raw).reshape(-1, blocks, self.block)
        dtype = helper.tensor_dtype_to_np_dtype(self.scales.dtype)
        scales = np.frombuffer(view(bundle, self.scales), dtype).reshape(count, blocks)[start:stop]
        found = (values - self._zeros(bundle, start, stop)) * scales.astype(np.float64)[..., None]
        return found.reshape(stop - start, length)

    def fits(self) -> bool:
        """Whether the parts have the bytes that the operator reads."""
        count, length = self.shape
        if self.block < 2 or length % self.block or self.block % 2 or self.scales.dtype not in _SCALES:
            return False
        blocks = length // self.block
        size = helper.tensor_dtype_to_np_dtype(self.scales.dtype).itemsize
        zeros = self.zeros is None or self.zeros.length == self._zero_bytes(count, blocks)
        values = self.values.length == count * length * self.bits // 8
        return values and self.scales.length == count * blocks * size and zeros

    def _zero_bytes(self, count: int, blocks: int) -> int:
        return count * -(-blocks * self.bits // 8) if self.padded else -(-count * blocks * self.bits // 8)

    def _zeros(self, bundle: Bundle, start: int, stop: int) -> NDArray[np.float64]:
        if self.zeros is None:
            return np.full(1, self.zero, np.float64)
        count, length = self.shape
        blocks = length // self.block
        raw = np.frombuffer(view(bundle, self.zeros), np.uint8)
        if self.padded:
            every = self._elements(raw).reshape(count, -1)[start:stop, :blocks]
        else:
            every = self._elements(raw)[start * blocks : stop * blocks].reshape(-1, blocks)
        return every[..., None]

    def _elements(self, raw: NDArray[np.uint8]) -> NDArray[np.float64]:
        """One number for each element, in the order in which they are packed."""
        if self.bits == 8:
            return raw.view(np.int8 if self.signed else np.uint8).astype(np.float64)
        halves = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)
        return ((halves ^ 8).astype(np.float64) - 8) if self.signed else halves.astype(np.float64)


def quantised(model: onnx.ModelProto, held: Mapping[str, Place]) -> dict[str, Quantised]:
    """The weights that a graph holds in blocks, by the name of the initializer that has their integers."""
    found = {}
    for node in model.graph.node:
        read = _READERS.get((node.domain, node.op_type))
        if read is None:
            continue
        names = (*node.input, "", "", "")
        given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        one = read(names, given, held)
        if one is not None and one.fits():
            found[one.parts[0]] = one
    return found


Reader = Callable[[Sequence[str], Mapping[str, Any], Mapping[str, Place]], Quantised | None]


def _dequantize_linear(names: Sequence[str], given: Mapping[str, Any], held: Mapping[str, Place]) -> Quantised | None:
    values = held.get(names[0])
    if values is None or not values.shape or not given.get("block_size"):
        return None
    last = given.get("axis", 1) in (-1, len(values.shape) - 1)
    return _typed(names, given["block_size"], held, zero=0) if last else None


def _gather(names: Sequence[str], given: Mapping[str, Any], held: Mapping[str, Place]) -> Quantised | None:
    names = [names[0], *names[2:]]  # without the indices
    values = held.get(names[0])
    if values is None or given.get("quantize_axis", 1) not in (-1, len(values.shape) - 1):
        return None
    block = given.get("block_size", 128)
    if values.dtype != TensorProto.UINT8:
        return _typed(names, block, held, zero=0)
    return _packed(names, given.get("bits", 4), block, held, prod(values.shape[:-1]))


def _matmul(names: Sequence[str], given: Mapping[str, Any], held: Mapping[str, Place]) -> Quantised | None:
    found = _packed(names[1:], given.get("bits", 4), given.get("block_size", 0), held, given.get("N", 0))
    return found if names[4] == "" and found is not None and found.shape[1] == given.get("K") else None


def _typed(names: Sequence[str], block: int, held: Mapping[str, Place], *, zero: int) -> Quantised | None:
    """Elements of a type of their own, and zeros of the same type."""
    places = _parts(names, held)
    if places is None or places[0].dtype not in _BITS:
        return None
    values, scales, zeros = places
    shape = (prod(values.shape[:-1]), values.shape[-1])
    parts = tuple(name for name in names[:3] if name)
    signed = values.dtype in _SIGNED
    return Quantised(values, scales, zeros, shape, _BITS[values.dtype], block, signed, zero, False, parts)


def _packed(names: Sequence[str], bits: int, block: int, held: Mapping[str, Place], count: int) -> Quantised | None:
    """Elements in bytes; the zero in the middle of the range where none is given."""
    places = _parts(names, held)
    if places is None or bits not in (4, 8) or any(one and one.dtype != TensorProto.UINT8 for one in places[::2]):
        return None
    values, scales, zeros = places
    shape = (count, values.length * 8 // bits // max(count, 1))
    parts = tuple(name for name in names[:3] if name)
    return Quantised(values, scales, zeros, shape, bits, block, False, 1 << (bits - 1), True, parts)


def _parts(names: Sequence[str], held: Mapping[str, Place]) -> tuple[Place, Place, Place | None] | None:
    """Values, scales and zeros, where the graph holds them all."""
    values, scales, zeros = (held.get(name) for name in names[:3])
    if values is None or scales is None or (zeros is None and names[2]):
        return None
    return values, scales, zeros


_READERS: Mapping[tuple[str, str], Reader] = {
    ("", "DequantizeLinear"): _dequantize_linear,
    (CONTRIB, "MatMulNBits"): _matmul,
    (CONTRIB, "GatherBlockQuantized"): _gather,
}
