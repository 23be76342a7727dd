# SPDX-License-Identifier: Apache-2.0
"""The operations without a family: zeros@1, concat@1, sample@1, stop@1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.errors import UsageError

from .. import philox
from ..sampling import sample
from ..text import first_stop
from . import Env, Value, refuse

Array = NDArray[Any]

# The element types of a value in a pipeline.
DTYPES = {"f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32, "u8": np.uint8, "bool": np.bool_}


def zeros_1(_env: Env, *, shape: Value, dtype: str = "f32") -> dict[str, Array]:
    """Zeros of a shape: y."""
    if dtype not in DTYPES:
        refuse("zeros@1", "dtype", f"is {dtype!r}, but it takes one of {', '.join(DTYPES)}")
    return {"y": np.zeros(dims_of("zeros@1", shape), DTYPES[dtype])}


def concat_1(_env: Env, *, a: Value, b: Value, axis: Value) -> dict[str, Array]:
    """Two tensors joined along an axis: y. A literal takes the other one's dtype."""
    left, right = _operands(a, b)
    along = integer("concat@1", "axis", axis)
    if left.dtype != right.dtype:
        refuse("concat@1", "b", f"is {right.dtype}, but 'a' is {left.dtype}")
    if left.ndim != right.ndim or not -left.ndim <= along < left.ndim:
        shapes = f"{list(left.shape)} and {list(right.shape)}"
        refuse("concat@1", "axis", f"is {along}, but the shapes {shapes} need one rank and an axis within it")
    if any(m != n for i, (m, n) in enumerate(zip(left.shape, right.shape, strict=True)) if i != along % left.ndim):
        shapes = f"{list(right.shape)}, but 'a' has {list(left.shape)}"
        refuse("concat@1", "b", f"has the shape {shapes}: only axis {along} may differ")
    return {"y": np.concatenate([left, right], axis=along)}


def _operands(a: Value, b: Value) -> tuple[Array, Array]:
    if isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        left = literal("concat@1", "a", a)
        return left, literal("concat@1", "b", b, left.dtype)
    return literal("concat@1", "a", a, b.dtype), b


def sample_1(
    env: Env,
    *,
    logits: Array,
    history: Array | None = None,
    new: Array | None = None,
    step: Value = None,
    stream: Value = 0,
    **options: Value,
) -> dict[str, Array]:
    """The next token, i64[1, 1], from the last position of logits [..., V]. Unbound options are the request's."""
    op = "sample@1"
    scores = np.asarray(logits)
    if scores.ndim == 0 or scores.size == 0 or scores.size != math.prod(scores.shape[-2:]):
        refuse(op, "logits", f"has the shape {list(scores.shape)}, but one sequence [..., positions, V] is expected")
    past = np.zeros(0, np.int64) if history is None else np.asarray(history).reshape(-1)
    try:
        chosen = env.options.replaced({name: plain(value) for name, value in options.items()})
    except UsageError as error:
        raise UsageError(error.message, where=op, hint=error.hint) from error
    number = integer(op, "stream", stream, low=0, high=philox.WORD)
    at = env.step(number) if step is None else integer(op, "step", step, low=0, high=philox.WORD)
    token = sample(
        scores.reshape(-1, scores.shape[-1])[-1],
        chosen,
        history=past,
        prompt_length=_before(past, new),
        eos=env.text.eos if env.text else (),
        processors=env.processors,
        step=at,
        stream=number,
    )
    return {"token": np.array([[token]], np.int64)}


def _before(history: Array, new: Array | None) -> int | None:
    """How many ids of `history` come before `new`, which is its end; None where that is not bound."""
    if new is None:
        return None
    count = history.size - np.asarray(new).size
    if count < 0 or not np.array_equal(history[count:], np.asarray(new).reshape(-1)):
        refuse("sample@1", "new", f"has {np.asarray(new).size} ids that are not the end of 'history'")
    return count


def stop_1(env: Env, *, tokens: Array) -> dict[str, Array]:
    """Whether the last token ends the text or a stop string has appeared: done, a bool."""
    ids = np.asarray(tokens).reshape(-1).tolist()
    done = False
    if ids and env.text is not None:
        done = ids[-1] in env.text.eos and not env.options.ignore_eos
        if not done and env.options.stop:
            done = first_stop(env.text.decode(ids), env.options.stop) >= 0
    elif ids and env.options.stop:
        raise UsageError("stop strings need a tokenizer, and this bundle has none", where="stop@1")
    return {"done": np.array(done)}


def plain(value: Value) -> Any:
    """A tensor of one element as a plain number; anything else as it is."""
    return value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value


def integer(op: str, port: str, value: Value, low: int | None = None, high: int = (1 << 63) - 1) -> int:
    """A port's value as one integer within its bounds."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        refuse(op, port, f"is {number!r}, but it takes an integer")
    if not (low is None or low <= number) or number > high:
        refuse(op, port, f"is {number}, but it takes {low} to {high}")
    return int(number)


def dims_of(op: str, shape: Value) -> tuple[int, ...]:
    """A port's value as the dims of a tensor that fits into memory's address space."""
    given: Sequence[Any] = np.asarray(shape).reshape(-1).tolist()
    dims = tuple(integer(op, "shape", dim, low=0) for dim in given)
    if math.prod(dims) > 1 << 40:
        refuse(op, "shape", f"is {list(dims)}: more than 2^40 elements")
    return dims


def literal(op: str, port: str, value: Value, dtype: np.dtype[Any] | None = None) -> Array:
    """A port's value as a tensor: JSON integers are i64, other numbers f32, unless `dtype` says otherwise."""
    if isinstance(value, np.ndarray):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        refuse(op, port, f"is no tensor: {error}")
    if array.dtype.kind not in "biuf":
        refuse(op, port, f"is {value!r}, but it takes numbers")
    if dtype is None:
        dtype = np.dtype(np.float32) if array.dtype.kind == "f" or array.size == 0 else array.dtype
    exact = array.size == 0 or array.dtype.kind == dtype.kind or np.array_equal(array.astype(dtype), array)
    if not exact:
        refuse(op, port, f"is {value!r}, which {dtype} does not hold")
    return array.astype(dtype)
