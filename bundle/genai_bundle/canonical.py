# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON: one value, one spelling (rules M1-M6): RFC 8785, within bounds that every reader can hold.

The digest of these bytes is a bundle's identity, so the reader refuses every other spelling of the same value.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NoReturn

import rfc8785

from .errors import ManifestError
from .layout import MAX_MANIFEST
from .names import at
from .records import Json

_SURROGATE = re.compile("[\ud800-\udfff]")

MAX_INTEGER = (1 << 53) - 1
MAX_DEPTH = 64
"""Objects and lists inside one another."""


def dumps(value: Json) -> bytes:
    """The canonical bytes of a JSON value. ManifestError where it has none (NaN, a huge integer)."""
    _check(value)
    return _encode(value)


def parse(raw: bytes, *, where: str = "manifest.json") -> Json:
    """The value that canonical bytes hold. ManifestError for any other bytes, with the place where they differ."""
    if len(raw) > MAX_MANIFEST:
        raise ManifestError(f"{len(raw)} bytes, at most {MAX_MANIFEST} are allowed", where=where, rule="M1")
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise ManifestError(f"byte {error.start} is not UTF-8", where=where, rule="M1") from error
    except RecursionError:
        raise ManifestError(f"nested deeper than {MAX_DEPTH} levels", where=where, rule="M5") from None
    except json.JSONDecodeError as error:
        raise ManifestError(f"not JSON: {error}", where=where, rule="M1") from error
    except ManifestError as error:
        error.where = where
        raise
    _check(value)
    canonical = _encode(value)
    if canonical != raw:
        raise _difference(raw, canonical, where)
    return value


def _encode(value: Json) -> bytes:
    return rfc8785.dumps(value)


def _check(value: Json) -> None:
    """Refuse what JSON's grammar allows and the canonical form does not, with the document path."""
    for path, depth, item in _walk(value):
        if depth >= MAX_DEPTH and isinstance(item, dict | list):
            raise ManifestError(f"nested deeper than {MAX_DEPTH} levels", where=f"{path[:40]}…", rule="M5")
        if isinstance(item, float) and (not math.isfinite(item) or (item == 0 and math.copysign(1, item) < 0)):
            raise ManifestError(f"{item!r} is not allowed, a number is finite and not -0.0", where=path, rule="M3")
        if isinstance(item, int | float) and item == int(item) and abs(item) > MAX_INTEGER:
            # A float without a fraction is spelt as an integer.
            raise ManifestError(f"the integer {item} lies outside of ±(2^53-1)", where=path, rule="M4")
        texts = item if isinstance(item, dict) else (item,) if isinstance(item, str) else ()
        for text in texts:
            if not isinstance(text, str):
                raise ManifestError("a key is not a text", where=path, rule="M1")
            if not text.isascii() and _SURROGATE.search(text):
                raise ManifestError("a text holds half of a surrogate pair", where=path, rule="M1")
        if not isinstance(item, dict | list | str | int | float | None):
            raise ManifestError(f"a {type(item).__name__} is not JSON", where=path, rule="M1")


def _walk(value: Json) -> Iterator[tuple[str, int, Json]]:
    """Every value inside `value` with its document path and depth, without recursion: the depth is not checked yet."""
    waiting: list[tuple[str, int, Json]] = [("", 0, value)]
    while waiting:
        path, depth, item = waiting.pop()
        yield path, depth, item
        if depth >= MAX_DEPTH:
            continue
        if isinstance(item, dict):
            waiting.extend((at(path, key), depth + 1, child) for key, child in item.items())
        elif isinstance(item, list):
            waiting.extend((f"{path}[{index}]", depth + 1, child) for index, child in enumerate(item))


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ManifestError(f"the key {twice!r} stands twice in one object", rule="M2")
    return found


def _constant(text: str) -> NoReturn:
    raise ManifestError(f"{text} is not JSON", rule="M3")


def _integer(text: str) -> int:
    if len(text) > 17:  # also keeps Python from turning a million digits into a number
        raise ManifestError(f"the integer {text[:20]}… lies outside of ±(2^53-1)", rule="M4")
    return int(text)


def _difference(raw: bytes, canonical: bytes, where: str) -> ManifestError:
    shorter = min(len(raw), len(canonical))
    at = next((index for index in range(shorter) if raw[index] != canonical[index]), shorter)
    got, expected = (data[at : at + 20].decode("utf-8", "replace") for data in (raw, canonical))
    return ManifestError(
        f"not canonical at byte {at}: {got!r} stands where {expected!r} was expected",
        where=where,
        rule="M6",
        hint="A bundle's manifest is written by the writer, not by hand; change the recipe and build again",
    )
