# SPDX-License-Identifier: Apache-2.0
"""The JSON Schemas, and that reader and schema give the same verdict."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from genai_bundle.canonical import dumps
from genai_bundle.errors import InvalidBundle
from genai_bundle.manifest import ELEMENT_TYPES, FEATURES, INPUT_TYPES, OUTPUT_TYPES, parse_manifest
from genai_bundle.names import NAME, OP, PATH, REFERENCE
from genai_bundle.schemas import load, validator
from vectors.manifests import Case, invalid_cases, noted, valid_cases

SCHEMAS = ("manifest.schema", "recipe.schema", "vector.schema", "ops.schema")
CASES = [*valid_cases(), *invalid_cases()]
MANIFEST = validator("manifest.schema")
INEXPRESSIBLE = {"M1", "M2", "M3", "M4", "M5", "M6", "M13", "M14", "M23"}
"""Rules of which JSON Schema can state nothing, or not all."""


def constant(text: str) -> None:
    raise ValueError(text)


def verdict(raw: bytes) -> str:
    """What the schema says of bytes."""
    try:
        document = json.loads(raw.decode(), parse_constant=constant)
    except ValueError:
        return "absent"
    return "valid" if MANIFEST.is_valid(document) else "invalid"


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_schemas(name: str) -> None:
    Draft202012Validator.check_schema(load(name))


def test_the_signatures_of_ops_have_their_shape() -> None:
    validator("ops.schema").validate(load("ops"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{'invalid' if case.rule else 'valid'}-{case.name}")
def test_the_schema_says_what_the_vector_says(case: Case) -> None:
    assert verdict(case.bytes) == case.schema


def test_schema_and_reader_agree_on_every_vector() -> None:
    for case in CASES:
        structural = case.rule is not None and case.rule[0] in "MV"
        if (case.schema == "invalid") != structural:
            assert case.note, f"{case.name}: schema and reader differ without a reason"
            assert case.rule is None or case.rule in INEXPRESSIBLE


def test_schema_and_code_list_the_same_words() -> None:
    parts = load("manifest.schema")["$defs"]
    assert parts["inputs"]["additionalProperties"]["properties"]["type"]["enum"] == list(INPUT_TYPES)
    assert parts["outputs"]["additionalProperties"]["properties"]["type"]["enum"] == list(OUTPUT_TYPES)
    assert load("manifest.schema")["properties"]["requires"]["items"]["enum"] == list(FEATURES)
    kinds = load("ops.schema")["$defs"]["kind"]["enum"]
    assert set(kinds) == {*INPUT_TYPES, "tensor"} - {"audio"}
    assert set(ELEMENT_TYPES) < set(kinds)


@given(st.from_regex(r"[A-Za-z_.0-9@/*-]{0,12}\n?", fullmatch=True))
def test_schema_and_code_have_the_same_patterns(text: str) -> None:
    for part, pattern in (("name", NAME), ("reference", REFERENCE), ("op", OP), ("path", PATH)):
        schema = MANIFEST.evolve(schema={"$ref": f"manifest.schema.json#/$defs/{part}"})
        assert schema.is_valid(text) == bool(pattern.fullmatch(text)), (part, text)


@pytest.mark.parametrize(
    "text", ["con", "a/con", "Con.txt/a", "com1.a.b", "conx", "a.con", "lpt9", "a..b", "a.", ".a", "a//b"]
)
def test_devices_and_points(text: str) -> None:
    schema = MANIFEST.evolve(schema={"$ref": "manifest.schema.json#/$defs/path"})
    assert schema.is_valid(text) == bool(PATH.fullmatch(text)) == (text in ("conx", "a.con", "a..b"))


OTHER: list[Any] = [None, True, False, 0, 1, -1, 2.5, 9007199254740991, [], {}, [[]], [1], ["x"], ["x", "y"]]
OTHER += ["", "x", "a.b", "kv.len", "f32", "read", "T*", "weights/a", "x@1", {"x": 1}, {"file": "a"}, {"x-a": None}]
KEYS = ["x", "x-y", "a b", "type", "chunks", "weights/a", "then"]
STARTS = [case.document for case in CASES if case.rule is None and case.schema == "valid"]
STARTS += [noted(next(case.document for case in CASES if case.name == "chat"))]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside `value`."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(pairs):
        yield value, key
        yield from places(child)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A valid manifest with one to three places deleted, renamed or given another value."""
    document = copy.deepcopy(draw(st.sampled_from(STARTS)))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(document))
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        what = draw(st.sampled_from(["delete", "retype", "rename", "copy"]))
        if what == "retype":
            container[key] = copy.deepcopy(draw(st.sampled_from(OTHER)))
        elif what == "copy":
            container[key] = copy.deepcopy(at(*found[draw(st.integers(0, len(found) - 1))]))
        elif what == "rename" and isinstance(container, dict):
            container[draw(st.sampled_from(KEYS))] = container.pop(key)
        else:
            del container[key]
    return document


def at(container: Any, key: Any) -> Any:
    return container[key]


def too_deep(value: Any, depth: int = 0) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 60 or any(too_deep(child, depth + 1) for child in children)


@given(mutated())
def test_schema_and_reader_agree_on_mutations_fuzz(document: Any) -> None:
    """`fuzz` in the name: `nox -s fuzz` tries many more."""
    if too_deep(document):
        return
    try:
        parse_manifest(dumps(document))
        rule = None
    except InvalidBundle as error:
        rule = error.rule
    assert MANIFEST.is_valid(document) == (rule is None) or rule in INEXPRESSIBLE, rule
