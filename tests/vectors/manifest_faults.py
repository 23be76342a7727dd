# SPDX-License-Identifier: Apache-2.0
"""One broken document, or more, for each rule of the manifest and of versions (M*, V*)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .manifests import Case, Document, by_name, change

KV = ("state", "kv")
RUN = ("steps", 1, "generate", "do", 0)
GENERATE = ("steps", 1, "generate")
LOOP = ("steps", 0, "loop")
DIGEST = "0" * 64
NOT_IN_SCHEMA = "JSON Schema cannot say it"


def faults() -> Iterator[Case]:
    """The invalid cases of these rules."""
    for group in (_json, _manifest, _files, _ports, _steps, _versions):
        yield from group()


def fault(rule: str, name: str, title: str, base: str, *edits: tuple[Any, ...], **more: Any) -> Case:
    """A valid case, broken. `more`: fields of the case, or `members` to add, replace or (None) drop."""
    valid = by_name(base)
    layer = {"P": "grammar", "G": "graph"}.get(rule[0], "manifest")
    expected = "valid" if rule[0] in "PG" else "invalid"
    members = {**valid.members, **more.pop("members", {})}
    members = {path: data for path, data in members.items() if data is not None}
    facts = {"layer": layer, "schema": expected, "note": None, **more}
    if rule[0] in "MV" and facts["schema"] != "invalid" and facts["note"] is None:
        facts["note"] = NOT_IN_SCHEMA
    return Case(name, title, change(valid.manifest, *edits), members, rule, **facts)


def _json() -> Iterator[Case]:
    """What is not canonical JSON."""
    raw = by_name("nothing").bytes

    def spelled(rule: str, name: str, title: str, data: bytes, schema: str = "valid") -> Case:
        return fault(rule, f"json-{name}", title, "nothing", raw=data, schema=schema)

    yield spelled("M1", "bom", "A byte order mark", b"\xef\xbb\xbf" + raw, "absent")
    yield spelled("M1", "latin", "A text in Latin-1", raw.replace(b"nothing", b"no\xf6thing"), "absent")
    yield spelled("M1", "cut", "The last byte is missing", raw[:-1], "absent")
    yield spelled("M1", "surrogate", "Half of a surrogate pair", raw.replace(b"[]}", b'[],"x-a":"\\ud800"}'))
    yield spelled("M2", "twice", "A key stands twice", raw.replace(b'"steps":[]', b'"steps":[],"steps":[]'))
    yield spelled("M3", "nan", "NaN is no JSON", raw.replace(b"[]}", b'[],"x-a":NaN}'), "absent")
    yield spelled("M3", "overflow", "A number beyond the range of doubles", raw.replace(b"[]}", b'[],"x-a":1e999}'))
    yield spelled("M3", "minus-zero", "Negative zero", raw.replace(b"[]}", b'[],"x-a":-0.0}'))
    yield spelled("M4", "integer", "2^53", raw.replace(b"[]}", b'[],"x-a":9007199254740992}'))
    yield spelled(
        "M5",
        "deep",
        "64 lists in one another, in the object",
        raw.replace(b"[]}", b'[],"x-a":' + b"[" * 64 + b"]" * 64 + b"}"),
    )
    yield spelled("M6", "indented", "White space", json.dumps(json.loads(raw), indent=1, sort_keys=True).encode())
    yield spelled("M6", "order", "Keys in another order", b'{"steps":[],' + raw[1:].replace(b',"steps":[]', b""))
    yield spelled("M6", "escape", "An escape that JSON does not need", raw.replace(b"nothing", b"n\\u006fthing"))
    yield spelled("M6", "float", "More digits than needed", raw.replace(b"[]}", b'[],"x-a":0.50}'))
    yield spelled("M6", "newline", "A newline at the end", raw + b"\n")


def _manifest() -> Iterator[Case]:
    """Keys and values anywhere."""
    yield fault("M7", "no-steps", "A required key is missing", "small", ("steps", ...))
    yield fault("M7", "no-file", "A graph without a file", "small", ("graphs", "double", "file", ...))
    yield fault("M7", "no-format", "No version", "small", ("format", ...))
    yield fault("M8", "unknown-key", "A misspelt key of the document", "chat", ("lisence", "MIT"))
    yield fault("M8", "unknown-option", "A misspelt option", "chat", ("generation", "temprature", 0.5))
    yield fault("M8", "beams", "Beams are the caller's to ask for", "chat", ("generation", "num_beams", 4))
    yield fault("M8", "unknown-loop-key", "A misspelt key deep in the steps", "loops", (*LOOP, "indx", "i"))
    yield fault("M9", "list-for-object", "Graphs as a list", "small", ("graphs", []))
    yield fault("M9", "number-for-text", "A number as the version", "chat", ("version", 1))
    yield fault("M9", "update-word", "An update that does not exist", "chat", (*KV, "update", "grow"))
    yield fault("M9", "zero-capacity", "A capacity of nothing", "chat", (*KV, "capacity", 0))
    yield fault("M9", "bool-for-integer", "true is no number", "chat", (*KV, "axis", True))
    yield fault("M9", "float-for-integer", "1.5 is no integer", "chat", (*KV, "axis", 1.5))
    yield fault("M9", "top-p", "A probability above 1", "chat", ("generation", "top_p", 1.5))
    yield fault("M9", "typical-p", "A typical mass below 0", "chat", ("generation", "typical_p", -0.5))
    yield fault("M9", "presence", "A word as a penalty", "chat", ("generation", "presence_penalty", "high"))
    yield fault("M9", "min-tokens", "Fewer tokens than none", "chat", ("generation", "min_tokens", -1))
    yield fault(
        "M9", "carry-three", "Three names for one carried value", "loops", (*LOOP, "carry", "x", ["x", "a", "b"])
    )
    yield fault("M9", "compare-word", "A comparison that does not exist", "chat", ("tests", 0, "compare", "close"))
    yield fault("M9", "fast-negative", "A bound below zero", "chat", ("tests", 0, "fast", -1))
    yield fault("M9", "no-dims", "An empty list of dims", "small", ("inputs", "x", "dims", []))
    yield fault("M9", "requires-twice", "A feature listed twice", "small", ("requires", ["domain:com.microsoft"] * 2))
    yield fault("M10", "graph-name", "A graph's name with a point", "small", ("graphs", "a.b", {"file": "a.onnx"}))
    yield fault("M10", "value-name", "A value's name with a space", "small", ("steps", 0, "out", "y", "two x"))
    yield fault("M10", "newline-name", "A name with a newline behind it", "small", ("steps", 0, "out", "y", "twice\n"))


def _files() -> Iterator[Case]:
    def listed(rule: str, name: str, title: str, files: Document, **more: Any) -> Case:
        return fault(rule, f"files-{name}", title, "nothing", ("files", files), **more)

    entry = {"size": 0, "sha256": DIGEST}
    yield listed("M11", "dots", "A path that leaves the bundle", {"docs/../../evil": entry})
    yield listed("M11", "absolute", "An absolute path", {"/docs/a": entry})
    yield listed("M11", "folder", "A path that ends in a slash", {"docs/": entry})
    yield listed("M11", "backslash", "A path with a backslash", {"docs\\a": entry})
    yield listed("M11", "device", "A device of Windows", {"docs/Aux.txt": entry})
    yield listed("M11", "trailing-dot", "A name that ends in a point", {"docs./a": entry})
    yield listed("M11", "hidden", "A hidden file", {"docs/.a": entry})
    yield listed("M11", "long", "A path of 201 characters", {"docs/" + "a" * 196: entry})
    yield listed("M12", "manifest", "The manifest lists itself", {"manifest.json": entry})
    yield listed("M12", "mimetype", "The type's member is listed, in capitals", {"MIMETYPE": entry})
    yield listed("M13", "case", "Two paths differ in case", {"docs/a": entry, "docs/A": entry}, schema="valid")
    yield listed("M13", "both", "A file that is a folder too", {"docs/a": entry, "docs/a/b": entry}, schema="valid")
    yield listed("M14", "no-chunks", "A shard without chunks", {"weights/a-00.bin": entry})
    yield listed("M14", "chunks", "Chunks of a small member", {"docs/a": {**entry, "chunks": []}})
    shard = {"size": 5 << 20, "sha256": DIGEST, "chunks": [DIGEST]}
    yield listed("M14", "few-chunks", "One digest for 5 MiB", {"weights/a-00.bin": shard}, schema="valid")
    yield listed("M15", "digest", "A digest in capitals", {"docs/a": {"size": 0, "sha256": "A" * 64}})
    yield fault(
        "M16", "graph-folder", "A graph in a folder", "small", ("graphs", "double", "file", "graphs/double.onnx")
    )


def _ports() -> Iterator[Case]:
    """Inputs and outputs."""
    yield fault("M17", "text-dims", "A text with dims", "chat", ("inputs", "prompt", "dims", ["N"]))
    yield fault("M17", "text-output-dims", "A text output of two dims", "chat", ("outputs", "text", "dims", [1, "T*"]))
    yield fault("M18", "no-rate", "Audio without a rate", "media", ("inputs", "sound", "rate", ...))
    yield fault("M18", "rate", "A rate of what is no audio", "small", ("inputs", "x", "rate", 16000))
    yield fault("M19", "two-stars", "Two dims that grow", "small", ("outputs", "y", "dims", ["A*", "B*"]))
    yield fault("M19", "star-input", "An input that grows", "small", ("inputs", "x", "dims", ["N*"]))
    yield fault("M20", "optional-default", "Optional, with a default", "media", ("inputs", "loud", "optional", True))
    yield fault(
        "M26",
        "variant-auto",
        "A variant with a reserved name",
        "chat",
        ("graphs", "decoder", "variants", 0, "name", "auto"),
    )


def _steps() -> Iterator[Case]:
    """The shape of steps."""
    yield fault("M21", "two-kinds", "A step that runs and emits", "small", ("steps", 0, "emit", {"y": "twice"}))
    yield fault("M21", "no-kind", "A step of no kind", "small", ("steps", 0, {"call": "double"}))
    yield fault("M22", "literal-in", "A literal in `in`", "small", ("steps", 0, "in", "x", 3))
    yield fault("M22", "field", "A field that states do not have", "chat", (*RUN, "in", "attention_mask", "kv.masks"))
    yield fault("M23", "object-literal", "An object as a literal", "small", ("steps", 0, "with", {"x": {"a": 1}}))
    ragged = ("steps", 0, "with", {"x": [[1, 2], [3]]})
    yield fault("M23", "ragged", "Rows of different lengths", "small", ragged, schema="valid")
    yield fault("M24", "endless", "A loop without an end", "loops", (*LOOP, "max", ...), (*LOOP, "until", ...))
    yield fault("M25", "two-ends", "A loop with while and until", "loops", (*LOOP, "while", "never"))


def _versions() -> Iterator[Case]:
    yield fault("V1", "format-number", "The version as a number", "small", ("format", 1.0))
    yield fault("V1", "format-zero", "A version with a leading zero", "small", ("format", "1.00"))
    yield fault("V2", "format-major", "Another major version", "small", ("format", "2.0"))
    yield fault("V2", "format-older", "The major version before the first", "small", ("format", "0.9"))
    yield fault("V3", "feature", "An unknown feature", "small", ("requires", ["time-travel:1"]))
