# SPDX-License-Identifier: Apache-2.0
"""Weights made of stored tensors: joined, cut and turned when somebody reads them, a few rows at a time if wanted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.safetensors import StoredTensor
from genai_bundle.builder.tensors import FLOATS, DerivedTensor, Rows, WeightTensor, checkpoint_tensor, stored_array
from genai_bundle.errors import SourceError


@dataclass(frozen=True)
class Weight:
    """An array that is read when asked for, in the type in which the checkpoint stores it.

    `where` names the file and the tensor (the first, where it is joined from several), `stored` is the file's name of
    the type; `rows` reads a part along the first axis, as a view of the mapping where it can.
    """

    name: str
    where: str
    stored: str
    shape: tuple[int, ...]
    rows: Rows
    source: StoredTensor | None = None
    """The tensor that it is, where it is one."""


def stored_weight(tensor: StoredTensor) -> Weight:
    """One tensor of the checkpoint, as it is. Raises SourceError for a type that cannot be built yet."""
    where = f"{tensor.file}: {tensor.name}"
    if isinstance(tensor, DerivedTensor):
        return Weight(tensor.name, where, tensor.dtype, tensor.shape, tensor.rows)
    array = stored_array(tensor)
    return Weight(
        tensor.name, where, tensor.dtype, tensor.shape, lambda part: array[part] if array.ndim else array, tensor
    )


def graph_tensor(weight: Weight) -> ir.LazyTensor:
    """The weight as an initializer of a graph that computes with float32."""
    if weight.source is not None:
        return checkpoint_tensor(replace(weight.source, name=weight.name), ir.DataType.FLOAT)
    if weight.stored not in FLOATS:
        raise SourceError(f"is joined of parts of the unknown type {weight.stored}", where=weight.where)
    return WeightTensor(weight.name, weight.shape, FLOATS[weight.stored], weight.rows)


def same_values(first: Weight, second: Weight) -> bool:
    """Whether two weights hold the same bytes in the same form."""
    if (first.stored, first.shape) != (second.stored, second.shape):
        return False
    one, other = (np.ascontiguousarray(weight.rows(slice(None))).reshape(-1) for weight in (first, second))
    return np.array_equal(one.view(np.uint8), other.view(np.uint8))


def stack(weights: Sequence[Weight], axis: int) -> Weight:
    """Several of one shape as one, along a new axis."""
    shape = list(_common(weight.shape for weight in weights))
    shape.insert(axis, len(weights))

    def rows(part: slice) -> np.ndarray:
        if axis == 0:
            wanted = [weight.rows(slice(None)) for weight in weights[part]]
            return np.stack(wanted) if wanted else weights[0].rows(slice(0, 0)).reshape(0, *shape[1:])
        return np.stack([weight.rows(part) for weight in weights], axis=axis)

    return _joined(weights, shape, rows)


def concatenate(weights: Sequence[Weight], axis: int) -> Weight:
    """Several one after another along an axis that they have."""
    axis %= len(weights[0].shape)
    _common(weight.shape[:axis] + weight.shape[axis + 1 :] for weight in weights)
    lengths = [weight.shape[axis] for weight in weights]
    shape = list(weights[0].shape)
    shape[axis] = sum(lengths)

    def rows(part: slice) -> np.ndarray:
        if axis:
            return np.concatenate([weight.rows(part) for weight in weights], axis=axis)
        wanted = range(sum(lengths))[part]
        pieces, begin = [], 0
        for weight, length in zip(weights, lengths, strict=True):
            low, high = max(wanted.start - begin, 0), min(wanted.stop - begin, length)
            if low < high:
                pieces.append(weight.rows(slice(low, high)))
            begin += length
        return np.concatenate(pieces or [weights[0].rows(slice(0, 0))])

    return _joined(weights, shape, rows)


def pieces(weight: Weight, axis: int, lengths: Sequence[int]) -> list[Weight]:
    """One cut along an axis, into pieces of these lengths."""
    axis %= len(weight.shape)
    if sum(lengths) != weight.shape[axis]:
        raise ValueError(f"axis {axis} is {weight.shape[axis]} long, expected {sum(lengths)}")
    begins = [sum(lengths[:index]) for index in range(len(lengths))]
    return [_piece(weight, axis, begin, length) for begin, length in zip(begins, lengths, strict=True)]


def chunks(weight: Weight, axis: int, count: int) -> list[Weight]:
    """One cut along an axis into `count` pieces of equal length, the last shorter where it does not divide."""
    whole = weight.shape[axis]
    length = math.ceil(whole / count)
    return pieces(weight, axis, [min(length, max(whole - length * index, 0)) for index in range(count)])


def turned(weight: Weight, first: int, second: int) -> Weight:
    """One with two axes exchanged."""
    shape = list(weight.shape)
    shape[first], shape[second] = shape[second], shape[first]
    outer = 0 in (first % len(shape), second % len(shape))

    def rows(part: slice) -> np.ndarray:
        if outer:
            return weight.rows(slice(None)).swapaxes(first, second)[part]
        return weight.rows(part).swapaxes(first, second)

    return replace(weight, shape=tuple(shape), rows=rows, source=None)


def _piece(weight: Weight, axis: int, begin: int, length: int) -> Weight:
    shape = list(weight.shape)
    shape[axis] = length

    def rows(part: slice) -> np.ndarray:
        if axis:
            return weight.rows(part)[(slice(None),) * axis + (slice(begin, begin + length),)]
        wanted = range(begin, begin + length)[part]
        return weight.rows(slice(wanted.start, wanted.stop))

    return replace(weight, shape=tuple(shape), rows=rows, source=None)


def _common(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    found = set(shapes)
    if len(found) != 1:
        raise ValueError(f"its parts have different shapes: {', '.join(map(str, sorted(found)[:2]))}")
    return found.pop()


def _joined(weights: Sequence[Weight], shape: Sequence[int], rows: Rows) -> Weight:
    kinds = sorted({weight.stored for weight in weights})
    if len(kinds) > 1:
        raise ValueError(f"its parts have different types: {', '.join(kinds)}")
    first = weights[0]
    places = {weight.where for weight in weights}
    where = first.where.removesuffix(" and more") + (" and more" if len(places) > 1 else "")
    return Weight(first.name, where, first.stored, tuple(shape), rows)
