# SPDX-License-Identifier: Apache-2.0
"""Vectors of saved prefixes (rules M35, M36, P36 to P38, G29), whose states can be worked out by hand."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from .manifest_faults import fault
from .manifests import CHAT, CHAT_MEMBERS, Case, Document, change
from .packing import manifest_bytes

BASE = "sha256:" + hashlib.sha256(manifest_bytes(CHAT, CHAT_MEMBERS)).hexdigest()
"""The id of the bundle that the prefixes stand in, without them."""

SHARD = "weights/prefix-00.bin"
ARRAY = {"file": SHARD, "offset": 0, "type": "f32", "dims": [1, 1, 2, 2], "x-note": None}
STATES = {"kv": {"past.0.key": ARRAY}}
HOW = {"variant": "portable", "backend": "reference", "device": "cpu", "precision": "exact", "x-note": None}
COMPUTED = {
    "bundle": BASE, "backend": "reference", "engines": {"reference": "1.23.0"}, "processor": "x86_64",
    "graphs": {"decoder": HOW}, "x-note": None,
}  # fmt: skip
TUNED = {
    **COMPUTED, "backend": "onnxruntime", "engines": {"onnxruntime": "1.32.0"},
    "graphs": {"decoder": {**HOW, "variant": "ort-cpu", "backend": "onnxruntime"}},
}  # fmt: skip
PREFIXES: Document = change(
    CHAT,
    (
        "prefixes",
        {
            "1f0c9a2b7d3e": {
                "ids": [2, 3], "of": {"prompt": "hello small", "x-note": None}, "states": STATES, "computed": COMPUTED,
                "x-note": None,
            },
            "tuned": {
                "ids": [4], "of": {"system": "world", "tools": [{"name": "f"}]}, "computed": TUNED,
                "states": {"kv": {"past.0.key": {**ARRAY, "offset": 64, "dims": [1, 1, 1, 2]}}},
            },
        },
    ),
)  # fmt: skip
MEMBERS = {**CHAT_MEMBERS, SHARD: struct.pack("<4f48x2f", 2, 2, 3, 3, 4, 4)}
ONE = ("prefixes", "1f0c9a2b7d3e")
AT = (*ONE, "states", "kv", "past.0.key")


def valid() -> Iterator[Case]:
    """A document that every reader accepts."""
    title = "Two prefixes, by the default file and by a variant; the id without them is that of `chat`"
    yield Case("prefixes", title, PREFIXES, MEMBERS)


def faults() -> Iterator[Case]:
    """The invalid cases."""
    for group in (_forms, _grammar, _arrays):
        yield from group()


def _broken(rule: str, name: str, title: str, *edits: tuple[Any, ...], **more: Any) -> Case:
    return fault(rule, f"prefix-{name}", title, "prefixes", *edits, **more)


def _forms() -> Iterator[Case]:
    prefix = PREFIXES["prefixes"]["1f0c9a2b7d3e"]
    yield _broken("M10", "name", "A prefix's name that is no word", ("prefixes", "my own", prefix))
    yield _broken("M7", "states", "A prefix without states", (*ONE, "states", ...))
    yield _broken("M7", "engine", "No word on the versions of engines", (*ONE, "computed", "engines", ...))
    yield _broken("M8", "key", "An unknown key", (*ONE, "text", "hello"))
    yield _broken("M9", "empty", "A prefix of no ids", (*ONE, "ids", []))
    yield _broken("M9", "id", "An id below 0", (*ONE, "ids", 0, -1))
    yield _broken("M9", "type", "An element type that does not exist", (*AT, "type", "f31"))
    yield _broken("M9", "dim", "A dim of 0", (*AT, "dims", 0, 0))
    yield _broken("M9", "tool", "A tool that is a text", (*ONE, "of", {"system": "", "tools": ["f"]}))
    yield _broken("M9", "precision", "A precision that does not exist", (*ONE, "computed", "graphs", "decoder",
                  {**HOW, "precision": "half"}))  # fmt: skip
    yield _broken("M15", "digest", "An id without the name of its digest", (*ONE, "computed", "bundle", BASE[7:]))
    yield _broken("M35", "both", "A prompt and a system message", (*ONE, "of", "system", ""))
    yield _broken("M35", "none", "Neither prompt nor system message", (*ONE, "of", {}))
    yield _broken("M35", "tools", "Tools of a prompt", (*ONE, "of", "tools", []))
    yield _broken("M36", "place", "An array that lies in no shard", (*AT, "file", "chat.jinja"))
    yield _broken("M36", "offset", "An array between two multiples of 64", (*AT, "offset", 8))


def _grammar() -> Iterator[Case]:
    changed = ("generation", "max_tokens", 3)
    yield _broken("P36", "stale", "Another bundle than the one that was computed with", changed)
    missing = (*AT, "file", "weights/prefix-01.bin")
    yield _broken("P24", "unlisted", "An array in a member that is not listed", missing)
    yield _broken("P37", "adapter", "An adapter that does not exist", (*ONE, "adapter", "pirate"))
    yield _broken("P37", "graph", "A graph that does not exist", (*ONE, "computed", "graphs", "encoder", HOW))
    yield _broken("P37", "no-graph", "Nothing on a graph", (*ONE, "computed", "graphs", {"encoder": HOW}))
    variant = {**HOW, "variant": "ort-gpu"}
    yield _broken("P37", "variant", "A variant that does not exist", (*ONE, "computed", "graphs", "decoder", variant))
    yield _broken("P37", "state", "A state that does not exist", (*ONE, "states", {"kw": STATES["kv"]}))
    yield _broken("P38", "end", "An array that ends behind its member", (*AT, "offset", 64))


def _arrays() -> Iterator[Case]:
    yield _broken("G29", "port", "An array for a port that the state has not", (*ONE, "states", "kv",
                  {"past.1.key": ARRAY}))  # fmt: skip
    yield _broken("G29", "other", "An array too many", (*ONE, "states", "kv", "past.0.value", ARRAY))
    yield _broken("G29", "element", "Arrays of another type", (*AT, "type", "i32"))
    yield _broken("G29", "count", "One position for two ids", (*AT, "dims", 2, 1))
    yield _broken("G29", "batch", "The states of two requests", (*AT, "dims", [2, 1, 2, 1]))
    ring = ("state", "kv", {**CHAT["state"]["kv"], "update": "ring", "window": 8})
    edits = _based(change(CHAT, ring), CHAT_MEMBERS)
    yield _broken("P37", "ring", "States that are no row of positions", ring, *edits)


def of_graphs() -> Iterator[Case]:
    """An invalid case that is seen when a graph is read, not by its ports."""
    outside = {**CHAT_MEMBERS, "decoder.onnx": _outside()}
    title = "A graph's tensor among the states of prefixes"
    yield _broken("G7", "weights", title, *_based(CHAT, outside), members=outside)


def _based(document: Document, members: Mapping[str, bytes]) -> Iterator[tuple[Any, ...]]:
    """The edits that let both prefixes be of this bundle."""
    base = "sha256:" + hashlib.sha256(manifest_bytes(document, members)).hexdigest()
    for name in PREFIXES["prefixes"]:
        yield "prefixes", name, "computed", "bundle", base


def _outside() -> bytes:
    """The decoder, with one of its tensors in the member that holds states."""
    model = onnx.ModelProto.FromString(CHAT_MEMBERS["decoder.onnx"])
    tensor = model.graph.initializer.add(name="unused", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", SHARD), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString(deterministic=True))
