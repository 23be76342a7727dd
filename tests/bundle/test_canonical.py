# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON: one value, one spelling (rules M1-M6). Byte-literal cases of each rule are among the vectors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_bundle.canonical import MAX_DEPTH, MAX_INTEGER, dumps, parse
from genai_bundle.errors import ManifestError

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x.is_integer() or 0 < abs(x) <= MAX_INTEGER)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=20,
)


def refused(raw: bytes) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        parse(raw)
    return caught.value


@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    raw = dumps(value)
    assert parse(raw) == value
    assert dumps(parse(raw)) == raw


@given(VALUES)
def test_no_other_spelling_is_read(value: Any) -> None:
    raw = dumps(value)
    for other in (json.dumps(value, indent=1).encode(), json.dumps(value, ensure_ascii=True).encode(), b" " + raw):
        if other != raw:
            refused(other)


def test_the_canonical_form() -> None:
    value = {"b": [1, 1.5, 2.0, 1e-7, True, None], "a": 'ünï"\\\n\x01', "Z": {}}
    assert dumps(value) == '{"Z":{},"a":"ünï\\"\\\\\\n\\u0001","b":[1,1.5,2,1e-7,true,null]}'.encode()


def test_keys_are_sorted_by_utf16_code_units() -> None:
    assert dumps({"\U0001f600": 1, "\uffee": 2}) == '{"\U0001f600":1,"\uffee":2}'.encode()


@pytest.mark.parametrize(
    ("raw", "rule", "where"),
    [
        (b"", "M1", "manifest.json"),
        (b"{}x", "M1", "manifest.json"),
        (b'{"a":1,"a":2}', "M2", "manifest.json"),
        (b'{"a":{"b":[Infinity]}}', "M3", "manifest.json"),
        (b'{"a":{"b":[1e400]}}', "M3", "a.b[0]"),
        (b'{"a b":-0.0}', "M3", "['a b']"),
        (b'{"a":-9007199254740993}', "M4", "a"),
        (b"1" * 100_000, "M4", "manifest.json"),
        (b"[" * 100_000 + b"]" * 100_000, "M5", "manifest.json"),
        (b'{"b":1,"a":2}', "M6", "manifest.json"),
        (b'{"a":1.0e0}', "M6", "manifest.json"),
        (b'"\\u00e9"', "M6", "manifest.json"),
        (b'{"a":["\\udc00"]}', "M1", "a[0]"),
    ],
)
def test_refusals_name_rule_and_place(raw: bytes, rule: str, where: str) -> None:
    error = refused(raw)
    assert (error.rule, error.where) == (rule, where)


def test_the_deepest_value() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert dumps(parse(deepest)) == deepest
    assert refused(b"[" + deepest + b"]").rule == "M5"


def test_the_greatest_integers() -> None:
    assert parse(b"[-9007199254740991,9007199254740991]") == [-MAX_INTEGER, MAX_INTEGER]


def test_a_difference_is_shown() -> None:
    error = refused(b'{"name":"x" }')
    assert "byte 11" in error.message
    assert error.hint


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -0.0, MAX_INTEGER + 1, 1e16, 1e22, {1: 2}, {"a": {1}}, b"x", "\udc00"]
)
def test_what_has_no_canonical_form_is_not_written(value: Any) -> None:
    with pytest.raises(ManifestError):
        dumps(value)
