# SPDX-License-Identifier: Apache-2.0
"""Saved prefixes: fixed beginnings of prompts, with what they leave in the states (spec/manifest.md, prefixes).

The states follow from the whole bundle but its prefixes, so that is what they name: the id that the bundle would have
without them. It stays as it is when a prefix comes or goes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import prod

from .canonical import dumps
from .digest import bundle_id
from .document import Node
from .layout import is_weights
from .names import WORD
from .records import Json, Manifest, Prefix, StoredArray
from .sections import parse_path
from .steps import port_entries

ITEM_SIZE = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u64": 8, "u32": 4, "u16": 2,
    "u8": 1, "bool": 1,
}  # fmt: skip
"""Bytes of an element, by the name of its type."""

ALIGNMENT = 64
"""An array begins at a multiple of it, as tensors in shards do."""

PORTABLE = "portable"
"""Stands for a graph's default file where a variant's name could stand."""

_ID = re.compile(r"sha256:[0-9a-f]{64}")


def base_id(manifest: Manifest) -> str:
    """The id that the bundle would have without its prefixes: what the states of a prefix are computed from."""
    document = json.loads(manifest.raw)
    if document.pop("prefixes", None):
        for path in prefix_files(manifest):
            document["files"].pop(path, None)
    return bundle_id(dumps(document))


def prefix_files(manifest: Manifest) -> frozenset[str]:
    """The members that hold nothing but states of prefixes."""
    return frozenset(path for prefix in manifest.prefixes.values() for path in prefix.files)


def array_size(array: StoredArray) -> int:
    """Bytes."""
    return prod(array.dims) * ITEM_SIZE[array.type]


def parse_prefix(node: Node) -> Prefix:
    keys = node.object(("ids", "of", "states", "computed"), ("adapter",))
    return Prefix(
        ids=tuple(token.integer(0, 2**32 - 1) for token in keys["ids"].items(1)),
        of=_of(keys["of"]),
        states={
            state: {port: _array(value) for port, value in port_entries(ports, 1).items()}
            for state, ports in keys["states"].entries(least=1).items()
        },
        computed=_computed(keys["computed"]),
        adapter=keys["adapter"].match(WORD, "a word such as pirate") if "adapter" in keys else None,
    )


def _of(node: Node) -> dict[str, Json]:
    """What the ids are the beginning of."""
    readers: dict[str, Callable[[Node], Json]] = {
        "system": lambda node: node.string(),
        "tools": lambda node: [_function(item) for item in node.items()],
        "prompt": lambda node: node.string(),
    }
    found = {key: readers[key](value) for key, value in node.object((), readers).items()}
    if ("prompt" in found) == ("system" in found) or ("tools" in found and "system" not in found):
        node.refuse("either `prompt`, or `system` and perhaps `tools`, was expected", "M35")
    return found


def _function(node: Node) -> Json:
    if not isinstance(node.value, dict):
        node.fail("an object")
    return node.value


def _array(node: Node) -> StoredArray:
    keys = node.object(("file", "offset", "type", "dims"))
    file = parse_path(keys["file"])
    if not is_weights(file):
        keys["file"].refuse("arrays lie in shards, under weights/", "M36")
    offset = keys["offset"].integer()
    if offset % ALIGNMENT:
        keys["offset"].refuse(f"{offset} is no multiple of {ALIGNMENT}", "M36")
    dims = tuple(dim.integer(1) for dim in keys["dims"].items(1, 8))
    return StoredArray(file, offset, keys["type"].choice(ITEM_SIZE), dims)


def _computed(node: Node) -> dict[str, Json]:
    """How the states were computed, as it stands."""
    keys = node.object(("bundle", "backend", "engines", "processor", "graphs"))
    return {
        "bundle": keys["bundle"].match(_ID, "sha256: and 64 lower-case hexadecimal digits", "M15"),
        "backend": keys["backend"].match(WORD, "a word such as onnxruntime"),
        "engines": {name: one.string(1) for name, one in keys["engines"].entries(WORD, 1).items()},
        "processor": keys["processor"].string(1),
        "graphs": {name: _placed(one) for name, one in keys["graphs"].entries(least=1).items()},
    }


def _placed(node: Node) -> dict[str, str]:
    keys = node.object(("variant", "backend", "device", "precision"))
    return {
        "variant": keys["variant"].match(WORD, "a word such as ort-cpu"),
        "backend": keys["backend"].match(WORD, "a word such as onnxruntime"),
        "device": keys["device"].string(1),
        "precision": keys["precision"].choice(("exact", "fast")),
    }
