# SPDX-License-Identifier: Apache-2.0
"""Whether a JSON value can be an input or output of a declared type: defaults and golden vectors."""

from __future__ import annotations

from collections.abc import Sequence

from .records import Dim, Json

_RANGES = {"i64": (1 - (1 << 53), (1 << 53) - 1), "i32": (-(1 << 31), (1 << 31) - 1), "u8": (0, 255)}


def problem(value: Json, kind: str, dims: Sequence[Dim] | None) -> str | None:
    """Says why `value` is no `kind` of those dims (the end of a sentence), None where it is one.

    A symbolic dim takes any length, the same one wherever its name comes back.
    """
    if kind == "text":
        return None if isinstance(value, str) else "is not a text"
    if kind == "messages":
        objects = isinstance(value, list) and all(isinstance(item, dict) for item in value)
        return None if objects else "is not a list of objects"
    if kind == "bytes":
        return "has no form in JSON; give a member, {file: path}"
    return _tensor(value, kind, tuple(dims or ()), {})


def _tensor(value: Json, kind: str, dims: tuple[Dim, ...], lengths: dict[str, int]) -> str | None:
    if not dims:
        return None if _is_element(value, kind) else f"holds {str(value)[:40]!r}, which is no {kind}"
    if not isinstance(value, list):
        return f"has not the {len(dims)} more dims that are declared"
    length = dims[0] if isinstance(dims[0], int) else lengths.setdefault(dims[0], len(value))
    if len(value) != length:
        return f"has a dim of {len(value)} where {length} was declared or found before"
    return next((found for item in value if (found := _tensor(item, kind, dims[1:], lengths))), None)


def _is_element(value: Json, kind: str) -> bool:
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if kind in _RANGES:
        least, most = _RANGES[kind]
        return isinstance(value, int) and least <= value <= most
    return isinstance(value, int | float)
