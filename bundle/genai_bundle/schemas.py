# SPDX-License-Identifier: Apache-2.0
"""The files of `schema/v1`: JSON Schemas, and the signatures of the host ops."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_SCHEMAS = ("manifest.schema", "recipe.schema", "vector.schema", "ops.schema")


def folder() -> Path:
    """Where the schemas lie: inside the package when it is installed, at the top of a checkout otherwise."""
    inside = Path(__file__).parent / "schema"
    return (inside if inside.is_dir() else Path(__file__).parents[2] / "schema") / "v1"


@cache
def load(name: str) -> dict[str, Any]:
    """One file by its name without `.json`: `manifest.schema`, `recipe.schema`, `vector.schema`, `ops.schema`, `ops`.

    The same object comes back on every call: do not change it.
    """
    found: dict[str, Any] = json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))
    return found


@cache
def validator(name: str) -> Validator:
    """A JSON Schema validator for `name`, a schema as `load` takes it.

    It reads patterns as ECMA-262 does, where `$` is the end and not also the newline before it, and takes 1.0 for a
    float, as canonical JSON does; jsonschema's own choice is the other one in both.
    """
    from jsonschema import Draft202012Validator, ValidationError, validators
    from referencing import Registry, Resource

    def pattern(_: Any, wanted: str, instance: object, __: object) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not re.search(wanted.replace("$", r"\Z"), instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    exact: Any = validators.extend(  # type: ignore[no-untyped-call]
        Draft202012Validator, {"pattern": pattern}, type_checker=types
    )
    known: Registry[Any] = Registry()
    for schema in _SCHEMAS:
        known = known.with_resource(f"{schema}.json", Resource.from_contents(load(schema)))
    made: Validator = exact(load(name), registry=known)
    return made
