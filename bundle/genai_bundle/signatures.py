# SPDX-License-Identifier: Apache-2.0
"""The host ops' signatures, read from `schema/v1/ops.json` (its shape: `ops.schema.json`), and the kinds of values.

A kind is `text`, `bytes`, `messages`, `strings`, an element type such as `f32`, `tensor` (some element type), or None
where nothing is known. Numbers are cast to what a port takes, kinds are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from .records import Json
from .schemas import load
from .sections import ELEMENT_TYPES

Kind: TypeAlias = str | None

NO_TENSORS = ("text", "bytes", "messages", "strings")
INTEGERS = ("i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8")


@dataclass(frozen=True, slots=True)
class Signature:
    """A host op: kinds by port, kinds of its literals, what must be bound, what comes out."""

    inputs: Mapping[str, str]
    literals: Mapping[str, str]
    required: tuple[str, ...]
    optional: frozenset[str]
    outputs: Mapping[str, str]
    defaults: Mapping[str, str]

    def output_kind(self, port: str, inputs: Mapping[str, Kind], literals: Mapping[str, Json]) -> Kind:
        """The kind that comes out of `port`; `@x` in the signature follows the port or the literal x."""
        kind = self.outputs[port]
        if not kind.startswith("@"):
            return kind
        source = kind[1:]
        if source in self.literals:
            return str(literals.get(source, self.defaults.get(source)))
        return inputs.get(source, "tensor")


@cache
def signature(op: str) -> Signature | None:
    """The signature of `op`, None for an op that this reader does not know."""
    entry = load("ops").get(op)
    if entry is None:
        return None
    literals = {key.rstrip("?"): kind.partition(" = ") for key, kind in entry["with"].items()}
    keys = [*entry["in"], *entry["with"]]
    return Signature(
        inputs={key.rstrip("?"): kind for key, kind in entry["in"].items()},
        literals={key: kind for key, (kind, _, _) in literals.items()},
        required=tuple(key for key in keys if not key.endswith("?")),
        optional=frozenset(key.rstrip("?") for key in keys if key.endswith("?")),
        outputs=entry["out"],
        defaults={key: default for key, (_, _, default) in literals.items() if default},
    )


def ops() -> tuple[str, ...]:
    """The names of all known host ops."""
    return tuple(load("ops"))


def fits(have: Kind, want: Kind) -> bool:
    """Tells whether a reader of kind `want` takes a value of kind `have`, as far as both are known."""
    if have is None or want is None:
        return True
    if have in NO_TENSORS or want in NO_TENSORS:
        return have == want
    return True


def literal_fits(value: Json, want: str) -> bool:
    """Tells whether a literal is of a kind that an op's port or attribute takes."""
    if want == "int":
        return type(value) is int
    if want == "ints":
        return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    if want == "dtype":
        return value in ELEMENT_TYPES
    if want in ("text", "bytes", "messages"):
        return want == "text" and isinstance(value, str)
    leaf = value
    while isinstance(leaf, list):
        leaf = leaf[0] if leaf else 0
    if want == "bool":
        return isinstance(leaf, bool)
    return isinstance(leaf, int | float) and (want == "tensor" or not isinstance(leaf, bool))


def merge(one: Kind, other: Kind) -> Kind:
    """The kind of a value that comes from either of two places."""
    if one == other:
        return one
    return None if one is None or other is None or not fits(one, other) else "tensor"
