# SPDX-License-Identifier: Apache-2.0
"""Quantised weights read as spec/graphs.md, Stored weights, has them: other dims and types over the same bytes."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.lowering.writer import UnfitError, Writer, data_of, size_of
from genai_bundle.builder.storage.blocks import pack, unpack

UNSIGNED = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}


def read_as(value: ir.Value, dtype: ir.DataType, dims: list[int], suffix: str) -> ir.TensorProtocol:
    """The bytes of an initializer, as many as they are, under a name of their own. Raises UnfitError."""
    tensor = data_of(value, f"the elements of {value.name}")
    name = f"{value.name}.{suffix}"
    if -(-prod(dims) * dtype.bitwidth // 8) != tensor.nbytes:
        raise UnfitError(f"{value.name} has {tensor.nbytes} bytes, which are not {dims} of {dtype.name}")
    if tensor.dtype == dtype and list(tensor.shape) == dims:
        return tensor
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, dtype, shape=ir.Shape(dims), name=name,
            base_dir=tensor.base_dir,
        )  # fmt: skip
    return typed(np.frombuffer(tensor.tobytes(), np.uint8), dtype, dims, name)


def typed(
    raw: np.ndarray[tuple[int], np.dtype[np.uint8]], dtype: ir.DataType, dims: list[int], name: str
) -> ir.TensorProtocol:
    if dtype.bitwidth == 4:
        return ir.PackedTensor(raw, dtype, shape=ir.Shape(dims), name=name)
    return ir.Tensor(raw.view(dtype.numpy()).reshape(dims), name=name)


def zeros(value: ir.Value | None, bits: int, rows: list[int], count: int, name: str) -> ir.TensorProtocol:
    """UINT4 or UINT8 [*rows, count] of zeros that are packed with rows beginning at bytes; the middle where None.

    Rows of four bits and an odd number end within a byte here, so those are stored anew. Raises UnfitError.
    """
    dims = [*rows, count]
    if value is None:
        middle = np.full((1, prod(dims)), 1 << (bits - 1), np.uint8)
        return typed(pack(middle, bits).reshape(-1), UNSIGNED[bits], dims, f"{name}.zeros")
    if bits == 8 or count % 2 == 0:
        return read_as(value, UNSIGNED[bits], dims, "typed")
    raw = np.frombuffer(data_of(value, "its zeros").tobytes(), np.uint8)
    if raw.size != prod(rows) * -(-count // 2):
        raise UnfitError(f"{value.name} has {raw.size} bytes, which are not {count} zeros in each row")
    alone = unpack(raw.reshape(prod(rows), -1), bits, count)
    return typed(pack(alone.reshape(1, -1), bits).reshape(-1), UNSIGNED[bits], dims, f"{value.name}.typed")


def blocks_of(write: Writer, value: ir.Value, rows: list[int], count: int) -> ir.Value:
    """A value for each block, [*rows, count]: an initializer with other dims, or what the graph computes, reshaped."""
    dims = [*rows, count]
    if [size_of(value, axis) for axis in range(len(value.shape or ()))] == dims:
        return value
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return write("Reshape", value, dims)
    return write.weight(read_as(value, tensor.dtype, dims, "blocks"))
