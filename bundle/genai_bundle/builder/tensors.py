# SPDX-License-Identifier: Apache-2.0
"""Checkpoint tensors as lazy graph tensors: bytes are read, and converted, when somebody asks for them."""

from __future__ import annotations

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


def checkpoint_tensor(tensor: StoredTensor, dtype: ir.DataType) -> ir.LazyTensor:
    """A graph tensor of `dtype` that reads the checkpoint's bytes. float16 and bfloat16 widen exactly."""
    stored_array(tensor)  # an unknown dtype is refused now, not while packing

    def read() -> ir.TensorProtocol:
        array = stored_array(tensor)
        return ir.Tensor(array.astype(dtype.numpy(), copy=False), name=tensor.name)

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(tensor.shape), name=tensor.name)


def same_bytes(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two stored tensors hold the same values in the same form."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return np.array_equal(np.frombuffer(first.data, np.uint8), np.frombuffer(second.data, np.uint8))
