# SPDX-License-Identifier: Apache-2.0
"""Values that flow through a pipeline: NumPy arrays, str, bytes and lists of chat messages; nothing else.

`coerce` turns what a caller gave into the declared type of an input, `to_port` a value into what a graph's port takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from genai_bundle.errors import BackendError, UsageError
from genai_bundle.manifest import Input, Output
from genai_bundle.ports import Port

from .backends.base import Array

Value = Any


class Emission(NamedTuple):
    """A piece of an output."""

    output: str
    value: Value


DTYPES: Mapping[str, np.dtype[Any]] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16),
    "i8": np.dtype(np.int8),
    "u64": np.dtype(np.uint64),
    "u32": np.dtype(np.uint32),
    "u16": np.dtype(np.uint16),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "audio": np.dtype(np.float32),
}


def coerce(name: str, declared: Input, given: Value) -> Value:
    """`given` as a value of the declared input. Raises UsageError naming the input, what it takes and what it got."""
    if declared.type == "text":
        return _expect(name, given, str, "text")
    if declared.type == "bytes":
        return bytes(_expect(name, given, (bytes, bytearray, memoryview), "bytes"))
    if declared.type == "messages":
        return _messages(name, given)
    dtype = DTYPES[declared.type]
    try:
        array = np.asarray(given)
        array = array if array.size else array.astype(dtype)  # an empty list has no type of its own
        if not np.can_cast(array.dtype, dtype, "same_kind") and not (array.dtype.kind in "iu" and _fits(array, dtype)):
            raise ValueError(f"{array.dtype} values")
        array = array.astype(dtype)
    except (ValueError, TypeError) as error:
        raise UsageError(f"input {name!r} takes {declared.type}, got {error}") from error
    expected = declared.dims or ()
    if len(expected) > array.ndim > 0:  # [1, N] may be given as a plain list of N
        array = array.reshape((1,) * (len(expected) - array.ndim) + array.shape)
    if len(expected) != array.ndim or any(
        isinstance(d, int) and d != n for d, n in zip(expected, array.shape, strict=False)
    ):
        shown = f"[{', '.join(map(str, expected))}]"
        raise UsageError(f"input {name!r} takes {declared.type}{shown}, got shape {list(array.shape)}")
    return array


def _expect(name: str, given: Value, kind: Any, shown: str) -> Value:
    if not isinstance(given, kind):
        raise UsageError(f"input {name!r} takes {shown}, got {type(given).__name__}")
    return given


def _messages(name: str, given: Value) -> Value:
    fine = isinstance(given, list) and all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in given)
    if not fine:
        hint = 'Like [{"role": "user", "content": "Hello"}]'
        raise UsageError(f"input {name!r} takes a list of messages, each with a role", hint=hint)
    return given


def _fits(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whole numbers may be given for any numeric type that holds them."""
    if dtype.kind == "f":
        return True
    if dtype.kind not in "iu":
        return False
    bounds = np.iinfo(dtype)
    return array.size == 0 or bool(array.min() >= bounds.min and array.max() <= bounds.max)


def to_port(value: Value, port: Port, where: str) -> Array:
    """`value` as the array that `port` takes: same kind of number, and one element may have any rank."""
    if not isinstance(value, np.ndarray):
        value = np.asarray(value)
    dtype = DTYPES.get(port.dtype)
    if dtype is None:
        raise BackendError(f"port {port.name!r} is of type {port.dtype}, which no value has", where=where)
    if value.dtype != dtype:
        if not same_kind(value.dtype, dtype):
            raise UsageError(f"port {port.name!r} takes {port.dtype}, the value is {value.dtype}", where=where)
        value = value.astype(dtype)
    if value.ndim != len(port.dims) and value.size == 1:
        value = value.reshape((1,) * len(port.dims))
    if value.ndim != len(port.dims):
        message = f"port {port.name!r} has {len(port.dims)} dimensions, the value has shape {list(value.shape)}"
        raise UsageError(message, where=where)
    array: Array = value
    return array


def literal(value: Any, port: Port) -> Array:
    """A literal of `with`, in the dtype of its port."""
    return np.asarray(value, DTYPES[port.dtype]) if port.dtype in DTYPES else np.asarray(value)


def joined(declared: Output, pieces: list[Value]) -> Value:
    """All that was emitted to an output, as one value. None when nothing was emitted to one that does not grow."""
    axis, dims = declared.stream_axis, declared.dims or ()
    if axis is None:
        return pieces[-1] if pieces else None
    if declared.type == "text":
        return "".join(pieces)
    if declared.type == "bytes":
        return b"".join(pieces)
    if not pieces:
        empty = [d if isinstance(d, int) else 0 if i == axis else 1 for i, d in enumerate(dims)]
        return np.zeros(empty, DTYPES[declared.type])
    return np.concatenate(pieces, axis=axis)


def conform(name: str, declared: Output, value: Value, where: str) -> Value:
    """An emitted value in the form that the manifest promises. Raises BackendError where it does not have it.

    Numbers are cast within their kind; leading dims of 1 are added or dropped: [] becomes [1], [1, N] becomes [N].
    """
    if declared.type in ("text", "bytes"):
        if not isinstance(value, str if declared.type == "text" else bytes):
            raise BackendError(f"output {name!r} is {declared.type}, got {type(value).__name__}", where=where)
        return value
    array, dtype, dims = np.asarray(value), DTYPES[declared.type], declared.dims or ()
    shape = (1,) * (len(dims) - array.ndim) + array.shape
    while len(shape) > len(dims) and shape[0] == 1:
        shape = shape[1:]
    fits = len(shape) == len(dims) and all(isinstance(d, str) or d == n for d, n in zip(dims, shape, strict=True))
    if not fits or not same_kind(array.dtype, dtype):
        got = f"{array.dtype}{list(array.shape)}"
        shown = f"{declared.type}[{', '.join(map(str, dims))}]"
        raise BackendError(f"output {name!r} is declared {shown}, the pipeline gave {got}", where=where)
    return array.astype(dtype, copy=False).reshape(shape)


def same_kind(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Numbers are cast between whole-number types and bool, or between floating types, and never across."""
    return (one.kind in "biu") == (other.kind in "biu") and one.kind in "biuf" and other.kind in "biuf"


def truth(value: Value) -> bool:
    """The condition of `if`, `while` and `until`: a bool, or whether an optional input was given."""
    if isinstance(value, np.ndarray | np.bool_) and value.dtype == np.bool_:
        return bool(value.all())
    return value is not None
