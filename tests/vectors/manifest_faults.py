# SPDX-License-Identifier: Apache-2.0
"""One broken document, or more, for each rule of the manifest, the grammar and the ports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .manifests import DECODER, RING, Case, Document, by_name, change, graph

KV = ("state", "kv")
RUN = ("steps", 1, "generate", "do", 0)
GENERATE = ("steps", 1, "generate")
LOOP = ("steps", 0, "loop")
DIGEST = "0" * 64
NOT_IN_SCHEMA = "JSON Schema cannot say it"


def faults() -> Iterator[Case]:
    """All invalid cases."""
    for group in (_json, _manifest, _files, _ports, _steps, _versions, _names, _ops, _flow, _outputs, _states, _rest):
        yield from group()
    yield from _graphs()


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
    yield spelled("M4", "integer", "2^53 + 1", raw.replace(b"[]}", b'[],"x-a":9007199254740993}'))
    yield spelled(
        "M5", "deep", "65 lists in one another", raw.replace(b"[]}", b'[],"x-a":' + b"[" * 65 + b"]" * 65 + b"}")
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
    yield fault("M8", "unknown-loop-key", "A misspelt key deep in the steps", "loops", (*LOOP, "indx", "i"))
    yield fault("M9", "list-for-object", "Graphs as a list", "small", ("graphs", []))
    yield fault("M9", "number-for-text", "A number as the version", "chat", ("version", 1))
    yield fault("M9", "update-word", "An update that does not exist", "chat", (*KV, "update", "grow"))
    yield fault("M9", "zero-capacity", "A capacity of nothing", "chat", (*KV, "capacity", 0))
    yield fault("M9", "bool-for-integer", "true is no number", "chat", (*KV, "axis", True))
    yield fault("M9", "float-for-integer", "1.0 is no integer", "chat", (*KV, "axis", 1.0))
    yield fault("M9", "top-p", "A probability above 1", "chat", ("generation", "top_p", 1.5))
    yield fault(
        "M9", "carry-three", "Three names for one carried value", "loops", (*LOOP, "carry", "x", ["x", "a", "b"])
    )
    yield fault("M9", "compare-word", "A comparison that does not exist", "chat", ("tests", 0, "compare", "close"))
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


def _names() -> Iterator[Case]:
    """Which names are visible where."""
    yield fault("P1", "undefined", "A misspelt value", "small", ("steps", 0, "in", "x", "xs"))
    yield fault("P1", "out-of-body", "A value of a body, read after it", "loops", ("steps", 1, "emit", "last", "after"))
    run, emit = by_name("small").manifest["steps"]
    yield fault("P1", "too-early", "A value that a later step assigns", "small", ("steps", [emit, run]))
    yield fault("P2", "assigned-twice", "A name is assigned twice", "small", ("steps", 0, "out", "y", "x"))
    yield fault("P2", "shadow", "A body assigns an outer name", "loops", (*LOOP, "do", 2, "out", "y", "rounds"))
    yield fault(
        "P2",
        "own-token",
        "The body assigns what generate draws",
        "chat",
        (*RUN, "out", "logits", "token"),
        (*GENERATE, "logits", "token"),
    )
    yield fault(
        "P2",
        "carry-known",
        "A new carried name that is known already",
        "loops",
        (*LOOP, "carry", "x", ["rounds", "after"]),
    )
    yield fault("P3", "no-graph", "A misspelt graph", "small", ("steps", 0, "run", "dubble"))


def _ops() -> Iterator[Case]:
    """Host ops."""
    encode = ("steps", 0, "else", 0)
    yield fault("P4", "unknown-op", "An op of the future", "chat", (*encode, "run", "text.encode@2"))
    yield fault("P5", "op-missing", "A required input is missing", "chat", (*encode, "in", {}))
    yield fault("P5", "op-input", "An input that the op does not know", "chat", (*encode, "in", "speed", "prompt"))
    yield fault("P5", "op-output", "An output that the op does not have", "chat", (*encode, "out", {"tokens": "ids"}))
    yield fault("P5", "op-literal", "A text where a bool belongs", "chat", (*encode, "with", {"add_special": "no"}))
    yield fault(
        "P6",
        "kind",
        "A text where messages belong",
        "chat",
        ("steps", 0, "then", 0, "in", "messages", "prompt"),
        ("inputs", "prompt", "optional", ...),
    )
    yield fault("P6", "number-until", "A number as the end of a loop", "loops", (*LOOP, "until", "i"))
    yield fault("P6", "max-float", "A loop that ends after 2.5 rounds", "loops", (*LOOP, "max", "temperature"))
    yield fault("P7", "bound-twice", "A port bound by `in` and by `with`", "small", ("steps", 0, "with", {"x": [1]}))
    yield fault(
        "P23",
        "no-tokenizer",
        "An op that tokenizes, and no `text`",
        "chat",
        ("text", ...),
        members=dict.fromkeys(("tokenizer.json", "chat.jinja")),
    )
    yield fault(
        "P23",
        "no-template",
        "Messages without a template",
        "chat",
        ("text", "template", ...),
        members={"chat.jinja": None},
    )


def _flow() -> Iterator[Case]:
    """Loops, branches, generate."""
    yield fault("P9", "carry-next", "The body does not assign the next value", "loops", (*LOOP, "carry", "x", "later"))
    yield fault("P9", "carry-self", "A value that is carried to itself", "loops", (*LOOP, "carry", "x", "x"))
    yield fault("P10", "reset", "A state that does not exist is emptied", "states", (*LOOP, "reset", ["cache"]))
    yield fault("P10", "reset-read", "A borrowed state is emptied", "states", (*LOOP, "reset", ["seen"]))
    yield fault("P11", "if-out", "One branch does not assign a name", "chat", ("steps", 0, "else", 0, "out", {}))
    yield fault("P11", "no-else", "A name leaves an if without else", "chat", ("steps", 0, "else", []))
    yield fault("P12", "if-number", "A number as a condition", "media", ("steps", 2, "if", "seed"))
    yield fault(
        "P12",
        "optional-bool",
        "A bool that is optional",
        "media",
        ("inputs", "loud", {"type": "bool", "optional": True}),
    )
    yield fault(
        "P13", "optional-read", "An optional input, read outside of an if", "small", ("inputs", "x", "optional", True)
    )
    yield fault("P13", "optional-else", "An input, read where it is missing", "chat", ("steps", 0, "if", "prompt"))
    yield fault("P17", "no-token", "A generate that carries no token", "chat", (*GENERATE, "carry", "ids", "logits"))
    two = {"ids": "token", "again": ["ids", "token"]}
    yield fault("P17", "two-tokens", "A generate that carries two tokens", "chat", (*GENERATE, "carry", two))


def _outputs() -> Iterator[Case]:
    yield fault("P14", "no-output", "A misspelt output", "small", ("steps", 1, "emit", {"z": "twice"}))
    yield fault("P15", "fixed-in-loop", "A fixed output in a loop", "loops", ("outputs", "all", "dims", [1]))
    run, emit = by_name("small").manifest["steps"]
    yield fault("P15", "set-twice", "A fixed output is set twice", "small", ("steps", [run, emit, emit]))
    yield fault("P15", "fixed-tokens", "Tokens that cannot grow", "chat", ("outputs", "tokens", "dims", [1, 1]))
    yield fault("P16", "never", "An output that no step emits", "small", ("outputs", "z", {"type": "f32"}))
    yield fault(
        "P6",
        "text-as-number",
        "A text goes to an output of numbers",
        "chat",
        (*GENERATE, "emit", "tokens", "text.decode@1"),
    )


def _states() -> Iterator[Case]:
    yield fault(
        "P8",
        "foreign-field",
        "A field of another graph's state",
        "states",
        (*LOOP, "do", 1, "in", {"past": "kept.len"}),
    )
    yield fault("P8", "no-state", "A field of no state", "chat", (*RUN, "in", "attention_mask", "cache.mask"))
    yield fault(
        "P8",
        "no-capacity",
        "The capacity of a state without one",
        "states",
        (*LOOP, "do", 0, "in", "n", "kept.capacity"),
    )
    yield fault("P19", "ring-window", "A ring without a window", "ring", ("state", "kept", "window", ...))
    yield fault("P19", "small-ring", "A ring smaller than its window", "ring", ("state", "kept", "capacity", 3))
    yield fault("P19", "scatter-capacity", "A buffer without a size", "states", ("state", "kept", "update", "scatter"))
    yield fault("P19", "append-window", "A window that has no effect", "chat", (*KV, "window", 8))
    yield fault("P19", "variant-capacity", "A variant's buffer without a size", "chat", (*KV, "capacity", ...))
    yield fault("P20", "state-graph", "A state of no graph", "states", ("state", "kept", "graph", "stop"))
    yield fault("P20", "of", "A borrowed state that does not exist", "states", ("state", "seen", "of", "cache"))
    yield fault("P20", "holes", "Placeholders that differ", "chat", (*KV, "ports", {"past.{n}.{h}": "present.{n}.key"}))
    yield fault("P21", "tokens-unbound", "A run that does not feed the tokens", "states", (*LOOP, "do", 0, "in", {}))
    variant = ("graphs", "decoder", "variants", 0)
    yield fault(
        "P22", "variant-state", "A variant changes an unknown state", "chat", (*variant, "state", {"cache": {}})
    )
    twice = [by_name("chat").manifest["graphs"]["decoder"]["variants"][0]] * 2
    yield fault("P22", "variant-twice", "Two variants of one name", "chat", ("graphs", "decoder", "variants", twice))


def _rest() -> Iterator[Case]:
    """Members, defaults, golden vectors."""
    yield fault("P18", "idle-graph", "A graph that never runs", "small", ("graphs", "spare", {"file": "double.onnx"}))
    yield fault("P24", "not-listed", "A tokenizer that is not listed", "chat", ("text", "tokenizer", "words.json"))
    yield fault("P25", "unused", "A member that nothing uses", "small", members={"extra.bin": b"?"})
    yield fault("P26", "default", "A text as the default of a number", "loops", ("inputs", "rounds", "default", "two"))
    yield fault("P26", "bytes-default", "Bytes have no form in JSON", "media", ("inputs", "picture", "default", "AA=="))
    yield fault("P27", "test-input", "A test of an unknown input", "chat", ("tests", 0, "in", "question", "why"))
    yield fault("P27", "test-output", "A test of an unknown output", "chat", ("tests", 0, "out", "answer", "so"))
    yield fault("P27", "test-required", "A test without a required input", "loops", ("tests", 0, "in", {}))
    yield fault("P28", "test-dims", "A result of the wrong rank", "chat", ("tests", 0, "out", "tokens", [2, 2]))
    yield fault("P28", "test-option", "A test of a negative temperature", "chat", ("tests", 0, "in", "temperature", -1))
    yield fault(
        "P29",
        "option-type",
        "An input that hides an option",
        "media",
        ("inputs", "seed", {"type": "text", "default": ""}),
    )
    yield fault(
        "P29", "stop-input", "An input named stop", "media", ("inputs", "stop", {"type": "text", "default": ""})
    )


def _graphs() -> Iterator[Case]:
    """Ports."""
    yield fault("G20", "port", "A misspelt input port", "small", ("steps", 0, "in", {"x": "x", "z": "x"}))
    yield fault("G20", "output-port", "A misspelt output port", "small", ("steps", 0, "out", {"z": "twice"}))
    wide = graph("double (float[N] x, float bias) => (float[N] y) { y = Add (x, bias) }")
    yield fault("G21", "unbound", "An input that nothing feeds", "small", members={"double.onnx": wide})
    yield fault("G21", "variant-unbound", "A variant's input that nothing feeds", "chat", (*RUN, "in", "seqlens", ...))
    past = ("state", "kept", "tokens", "past"), (*LOOP, "do", 0, "in", {"x": "x", "past": "x"})
    yield fault("G22", "fed-twice", "A port that a step and a state feed", "states", *past)
    yield fault(
        "G23", "pattern", "A pattern that matches nothing", "chat", (*KV, "ports", {"cache.{n}": "present.{n}"})
    )
    other = graph(DECODER.replace('float[1,1,T,2] "present', 'float[T,2] "present'))
    yield fault("G24", "pair-rank", "Past and present of different ranks", "chat", members={"decoder.onnx": other})
    yield fault("G24", "axis", "An axis that the past does not have", "ring", ("state", "kept", "axis", 2))
    yield fault(
        "G25",
        "tokens-port",
        "Tokens are counted on an axis that is not there",
        "ring",
        ("state", "kept", "tokens", "at"),
        members={"step.onnx": graph(RING)},
    )
    texts = graph("double (string[N] x) => (string[N] y) { y = Identity (x) }")
    variants = [{"name": "t", "when": {"backend": "any"}, "file": "texts.onnx"}]
    yield fault(
        "G26",
        "text-variant",
        "A text in a variant, a tensor in the default",
        "small",
        ("graphs", "double", "variants", variants),
        members={"texts.onnx": texts},
    )
    yield fault(
        "P6", "text-port", "Numbers for a port of texts", "small", layer="graph", members={"double.onnx": texts}
    )
