# SPDX-License-Identifier: Apache-2.0
"""Checkpoint tensors as lazy graph tensors: bytes are read, and converted, when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_bundle.builder.safetensors import StoredTensor
from genai_bundle.errors import SourceError

_NUMPY: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind).newbyteorder("<")
    for name, kind in {
        "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "U32": "u4", "I32": "i4", "U64": "u8",
        "I64": "i8",         "F16": "f2", "F32": "f4", "F64": "f8",
    }.items()
} | {"BF16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip


def stored_array(tensor: StoredTensor) -> NDArray[Any]:
    """The tensor as an array over the mapping: no copy."""
    dtype = _NUMPY.get(tensor.dtype)
    if dtype is None:
        raise SourceError(
            f"has the dtype {tensor.dtype}, which cannot be built yet", where=f"{tensor.file}: {tensor.name}"
        )
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


FLOATS = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}
"""Types in which weights are stored and whose values float32 holds exactly."""

Rows = Callable[[slice], NDArray[Any]]
"""A part of a tensor along its first axis, in the type in which it is stored; the whole of a scalar."""


class DerivedTensor(StoredTensor):
    """A tensor that is no byte range of its file but made from some when it is read: decoded, turned or joined."""

    __slots__ = ("rows",)

    rows: Rows

    def __init__(self, name: str, file: str, dtype: str, shape: tuple[int, ...], rows: Rows) -> None:
        for key, value in (("name", name), ("file", file), ("dtype", dtype), ("shape", shape), ("rows", rows)):
            object.__setattr__(self, key, value)  # the base is frozen

    @property
    def data(self) -> memoryview:
        """All of it, made anew each time."""
        return np.ascontiguousarray(self.rows(slice(None))).reshape(-1).view(np.uint8).data


class WeightTensor(ir.LazyTensor):
    """A weight as float32, the type that exported graphs compute with, made from what the checkpoint holds.

    `stored` is the type that the checkpoint holds, `rows` reads a part in that type: with them a weight is kept as it
    is, or converted a few rows at a time, so that a large one is never in memory as a whole. A conversion (parts
    joined, turned or split) hands on its own `rows`.
    """

    __slots__ = ("dims", "rows", "stored")

    def __init__(self, name: str, shape: tuple[int, ...], stored: ir.DataType, rows: Rows) -> None:
        self.dims = shape
        self.stored = stored
        self.rows = rows

        def read() -> ir.TensorProtocol:
            return ir.Tensor(rows(slice(None)).astype(np.float32, copy=False), name=name)

        super().__init__(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)


def checkpoint_tensor(tensor: StoredTensor, dtype: ir.DataType) -> ir.LazyTensor:
    """A graph tensor of `dtype` that reads the checkpoint's bytes. float16 and bfloat16 widen exactly."""
    array = stored_array(tensor)  # an unknown dtype is refused now, not while packing
    if dtype == ir.DataType.FLOAT and tensor.dtype in FLOATS:
        return WeightTensor(
            tensor.name, tensor.shape, FLOATS[tensor.dtype], lambda part: array[part] if array.ndim else array
        )

    def read() -> ir.TensorProtocol:
        array = stored_array(tensor)
        return ir.Tensor(array.astype(dtype.numpy(), copy=False), name=tensor.name)

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(tensor.shape), name=tensor.name)


def same_bytes(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two stored tensors hold the same values in the same form."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return np.array_equal(np.frombuffer(first.data, np.uint8), np.frombuffer(second.data, np.uint8))
