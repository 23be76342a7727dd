# SPDX-License-Identifier: Apache-2.0
"""How names look: patterns, each the same as in `schema/v1/manifest.schema.json`. Match them with `fullmatch`."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""A graph, input, output, state or value."""

REFERENCE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.(len|total|mask|positions|last|capacity))?")
"""What an `in` reads: a value, or a field of a state."""

OP = re.compile(r"([a-z][a-z0-9_]*\.)?[a-z][a-z0-9_]*@[1-9][0-9]*")
"""A host op, `name@major` or `family.name@major`."""

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""The bundle's name and version, a task, a variant, a backend, a device."""

LICENSE = re.compile(r"[A-Za-z0-9(][A-Za-z0-9 ()+.:-]*")
"""An SPDX licence expression."""

DIM = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")
"""A symbolic dim; with a star it grows."""

DIGEST = re.compile(r"[0-9a-f]{64}")

FORMAT = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")

MAX_PORT = 200
"""Characters of a port's name; ONNX sets no limit of its own."""

_DEVICE = r"(?:[Cc][Oo][Nn]|[Pp][Rr][Nn]|[Aa][Uu][Xx]|[Nn][Uu][Ll]|[Cc][Oo][Mm][0-9]|[Ll][Pp][Tt][0-9])(?:[./]|$)"
_SEGMENT = rf"(?!{_DEVICE})[A-Za-z0-9_-]+(?:\.+[A-Za-z0-9_-]+)*"
PATH = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
"""A member's path. Devices are names that Windows keeps for itself, with any ending."""

MAX_PATH = 200
"""Characters; leaves room for a folder in front on systems that stop at 260."""


def at(path: str, key: str) -> str:
    """The document path of `key` in the object at `path`: `state.kv`, `files['docs/LICENSE']`."""
    if NAME.fullmatch(key):
        return f"{path}.{key}" if path else key
    return f"{path}[{key!r}]"


def is_path(text: str) -> bool:
    """Tells whether `text` may be a member's path (rule M11)."""
    return len(text) <= MAX_PATH and PATH.fullmatch(text) is not None
