# SPDX-License-Identifier: Apache-2.0
"""Put saved prefixes into a bundle that is written again, and take them out (spec/manifest.md, prefixes).

All else of the bundle stays as it is, byte for byte, and so does its id without prefixes, which they name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from genai_bundle.errors import UsageError
from genai_bundle.records import SIGNATURE_MEMBER
from genai_bundle.writer import Source

from .shards import Packer, Read

Parts = tuple[dict[str, Any], dict[str, Source]]
"""A manifest without `files`, and the sources of its members."""


@dataclass(frozen=True, slots=True)
class Data:
    """An array to store: its element type by the manifest's name, its dims, and its bytes."""

    type: str
    dims: tuple[int, ...]
    length: int
    read: Read


def prefix_name(computed: Mapping[str, Any], adapter: str | None, ids: Collection[int]) -> str:
    """The name of a prefix: the same for the same ids, computed in the same way."""
    return hashlib.sha256(json.dumps([computed, adapter, *ids], sort_keys=True).encode()).hexdigest()[:12]


def with_prefix(parts: Parts, name: str, entry: Mapping[str, Any], arrays: Mapping[tuple[str, str], Data]) -> Parts:
    """The bundle with a prefix, in place of one of the same name. entry: its keys but `states`."""
    manifest, members = without_prefixes(parts, [name])
    packer = Packer(f"prefix-{name}")
    states: dict[str, dict[str, Any]] = {}
    for (state, port), data in sorted(arrays.items()):
        place = packer.place(data.length, data.read)
        about = {"file": place.member, "offset": place.offset, "type": data.type, "dims": list(data.dims)}
        states.setdefault(state, {})[port] = about
    shards = packer.shards()
    if taken := sorted(shards.keys() & members.keys()):
        raise UsageError("the bundle has another member of this name", where=taken[0], hint="Rename it")
    prefixes = {**manifest.get("prefixes", {}), name: {**entry, "states": states}}
    return {**manifest, "prefixes": prefixes}, {**members, **shards}


def without_prefixes(parts: Parts, names: Collection[str]) -> Parts:
    """The bundle without these prefixes, those of them that it has, and without its signature, which is of another."""
    manifest, members = parts
    held = manifest.get("prefixes", {})
    left = {name: entry for name, entry in held.items() if name not in names}
    gone = _files(held) - _files(left)
    rest = {path: source for path, source in members.items() if path not in gone and path != SIGNATURE_MEMBER}
    document = {key: value for key, value in manifest.items() if key != "prefixes"}
    return {**document, **({"prefixes": left} if left else {})}, rest


def _files(prefixes: Mapping[str, Any]) -> set[str]:
    """The members that hold arrays of these prefixes."""
    states = [ports for prefix in prefixes.values() for ports in prefix["states"].values()]
    return {array["file"] for ports in states for array in ports.values()}
