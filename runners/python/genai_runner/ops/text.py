# SPDX-License-Identifier: Apache-2.0
"""The operations of the family `text`: encode, decode, chat."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.errors import GenaiError

from ..text import TextCodec, first_stop
from . import Env, Value, refuse

Array = NDArray[Any]


def encode_1(env: Env, *, text: Value, add_special: Value = True) -> dict[str, Array]:
    """Text to ids, i64[1, N]."""
    if not isinstance(text, str):
        refuse("text.encode@1", "text", f"takes text, got {type(text).__name__}")
    return {"ids": _row(_codec(env, "text.encode@1").encode(text, _flag("text.encode@1", "add_special", add_special)))}


def decode_1(env: Env, *, tokens: Value) -> dict[str, str]:
    """Ids to text: without special tokens, cut before the first of the request's stop strings."""
    ids = np.asarray(tokens)
    if ids.dtype.kind not in "iu" and ids.size:
        refuse("text.decode@1", "tokens", f"takes integers, got {ids.dtype}")
    text = _codec(env, "text.decode@1").decode(ids.reshape(-1).astype(np.int64).tolist())
    cut = first_stop(text, env.options.stop)
    return {"text": text if cut < 0 else text[:cut]}


def chat_1(env: Env, *, messages: Value, tools: Value = None, add_generation_prompt: Value = True) -> dict[str, Array]:
    """A conversation to ids, i64[1, N], through the bundle's chat template."""
    prompt = _flag("text.chat@1", "add_generation_prompt", add_generation_prompt)
    return {"ids": _row(_codec(env, "text.chat@1").chat(messages, tools, prompt))}


def _codec(env: Env, op: str) -> TextCodec:
    if env.text is None:
        raise GenaiError("this bundle has no tokenizer", where=op, hint="Its manifest needs a `text` section")
    return env.text


def _row(ids: list[int]) -> Array:
    return np.array(ids, dtype=np.int64).reshape(1, -1)


def _flag(op: str, port: str, value: Value) -> bool:
    flag = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
    if not isinstance(flag, bool):
        refuse(op, port, f"is {flag!r}, but it takes true or false")
    return bool(flag)
