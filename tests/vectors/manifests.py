# SPDX-License-Identifier: Apache-2.0
"""Vectors of the manifest, the pipeline's grammar and the graphs' ports (rules M*, V*, P*, G20 on).

The valid documents are here, each the smallest that shows its part of the grammar; `manifest_faults` and
`grammar_faults` break them, one rule at a time.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import onnx.parser

from .packing import manifest_bytes

Document = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A manifest without `files` (they follow from `members`) unless the case is about them.

    rule: the broken one, None for a valid case. layer: manifest, grammar or graph. raw: the manifest's bytes where
    they are no canonical JSON. schema: the verdict of manifest.schema.json, `absent` where no JSON can be read.
    note: why that differs from the reader's verdict.
    """

    name: str
    title: str
    manifest: Document = field(repr=False)
    members: Mapping[str, bytes] = field(repr=False, default_factory=dict)
    rule: str | None = None
    layer: str = "manifest"
    raw: bytes | None = field(repr=False, default=None)
    schema: str = "valid"
    note: str | None = None

    @property
    def schema_valid(self) -> bool:
        return self.schema == "valid"

    @property
    def bytes(self) -> bytes:
        """`manifest.json`."""
        return manifest_bytes(self.manifest, self.members) if self.raw is None else self.raw

    @property
    def document(self) -> Document:
        """The parsed `manifest.json` of a case whose bytes are JSON."""
        found: Document = json.loads(self.bytes)
        return found


def graph(text: str) -> bytes:
    """A graph in ONNX's textual form as the bytes of a member."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {text}')
    return bytes(model.SerializeToString(deterministic=True))


def tokenizer() -> bytes:
    """A word-level tokenizer that knows five words."""
    vocabulary = {"<eos>": 0, "<unk>": 1, "hello": 2, "small": 3, "world": 4}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    added = [{"id": 0, "content": "<eos>", "special": True}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")),
        "added_tokens": [{**token, **flags} for token in added],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": model,
    }
    return json.dumps(document, sort_keys=True).encode()


DECODER = """decoder (int64[1,S] input_ids, int64[1,T] attention_mask, float[1,1,P,2] "past.0.key")
  => (float[1,S,5] logits, float[1,1,T,2] "present.0.key")
  <int64 depth = {5}, float[2] values = {0.0, 1.0}, int64[2] axes = {1, 3}, int64[4] twice = {1, 1, 1, 2}> {
    logits = OneHot (input_ids, depth, values)
    ids = Cast <to = 1> (input_ids)
    column = Unsqueeze (ids, axes)
    new = Tile (column, twice)
    "present.0.key" = Concat <axis = 2> ("past.0.key", new)
  }"""
SHARED_DECODER = DECODER.replace("int64[1,T] attention_mask", "int64[1] seqlens").replace(
    'Concat <axis = 2> ("past.0.key", new)', 'Identity ("past.0.key")'
)
DOUBLE = "double (float[N] x) => (float[N] y) { y = Add (x, x) }"
STEP = "step (float[1,S] x, float[1,P] past) => (float[1,T] present) { present = Concat <axis = 1> (past, x) }"
SUM = "sum (float[1,P] past) => (float[1,1] total) { total = ReduceSum (past) }"

SMALL: Document = {
    "format": "1.0",
    "name": "small",
    "graphs": {"double": {"file": "double.onnx"}},
    "inputs": {"x": {"type": "f32", "dims": ["N"]}},
    "outputs": {"y": {"type": "f32", "dims": ["N"]}},
    "steps": [{"run": "double", "in": {"x": "x"}, "out": {"y": "twice"}}, {"emit": {"y": "twice"}}],
}

CHAT: Document = {
    "format": "1.0",
    "name": "chat",
    "version": "0.3.1",
    "task": "text-generation",
    "description": "A decoder that says what it hears – ünïcode too",
    "license": "Apache-2.0 OR MIT",
    "authors": ["One", "Another"],
    "source": {"repo": "example/chat", "exporter": {"name": "hand", "version": "1"}},
    "graphs": {
        "decoder": {
            "file": "decoder.onnx",
            "variants": [
                {
                    "name": "ort-cpu",
                    "when": {"backend": "onnxruntime", "device": "cpu"},
                    "file": "decoder.ort-cpu.onnx",
                    "state": {"kv": {"update": "shared"}},
                }
            ],
        }
    },
    "inputs": {
        "prompt": {"type": "text", "optional": True},
        "messages": {"type": "messages", "optional": True},
        "tools": {"type": "messages", "optional": True},
    },
    "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}, "text": {"type": "text", "dims": ["T*"]}},
    "state": {
        "kv": {
            "graph": "decoder",
            "ports": {"past.{n}.{h}": "present.{n}.{h}"},
            "axis": 2,
            "update": "append",
            "tokens": "input_ids",
            "capacity": 64,
        }
    },
    "steps": [
        {
            "if": "messages",
            "then": [{"run": "text.chat@1", "in": {"messages": "messages", "tools": "tools"}, "out": {"ids": "ids"}}],
            "else": [{"run": "text.encode@1", "in": {"text": "prompt"}, "out": {"ids": "ids"}}],
            "out": ["ids"],
        },
        {
            "generate": {
                "carry": {"ids": "token"},
                "do": [
                    {
                        "run": "decoder",
                        "in": {"input_ids": "ids", "attention_mask": "kv.mask", "seqlens": "kv.last"},
                        "out": {"logits": "logits"},
                    }
                ],
                "logits": "logits",
                "emit": {"tokens": "token", "text": "text.decode@1"},
            }
        },
    ],
    "text": {"tokenizer": "tokenizer.json", "template": "chat.jinja", "eos": [0], "special": {"eos_token": "<eos>"}},
    "generation": {"max_tokens": 2, "temperature": 0, "top_p": 0.9, "stop": ["</s>"], "seed": 7},
    "tests": [
        {"name": "greedy", "in": {"prompt": "hello"}, "out": {"tokens": [[2, 2]]}, "compare": "tokens"},
        {"in": {"messages": {"file": "tests/messages.json"}, "max_tokens": 1}, "out": {"text": "hello"}},
    ],
}
CHAT_MEMBERS = {
    "decoder.onnx": graph(DECODER),
    "decoder.ort-cpu.onnx": graph(SHARED_DECODER),
    "tokenizer.json": tokenizer(),
    "chat.jinja": b"{% for m in messages %}{{ m.content }} {% endfor %}",
    "tests/messages.json": b'[{"role":"user","content":"hello"}]',
}

LOOPS: Document = {
    "format": "1.0",
    "name": "loops",
    "graphs": {"double": {"file": "double.onnx"}},
    "inputs": {"x": {"type": "f32", "dims": [1]}, "rounds": {"type": "i64", "default": 2}},
    "outputs": {"all": {"type": "f32", "dims": ["T*"]}, "last": {"type": "f32", "dims": [1]}},
    "steps": [
        {
            "loop": {
                "carry": {"x": "after"},
                "max": "rounds",
                "index": "i",
                "until": "never",
                "do": [
                    {
                        "loop": {
                            "carry": {"inner": ["x", "next"]},
                            "max": 2,
                            "do": [{"run": "double", "in": {"x": "inner"}, "out": {"y": "next"}}],
                        }
                    },
                    {"run": "double", "in": {"x": "inner"}, "out": {"y": "after"}},
                    {"run": "zeros@1", "with": {"shape": [1], "dtype": "bool"}, "out": {"y": "never"}},
                    {"emit": {"all": "after"}},
                ],
            }
        },
        {"emit": {"last": "x"}},
    ],
    "tests": [{"in": {"x": [1]}, "out": {"last": [64.5]}, "compare": {"abs": 0.5}, "fast": 0.75}],
}

STATES: Document = {
    "format": "1.0",
    "name": "states",
    "graphs": {"step": {"file": "step.onnx"}, "sum": {"file": "sum.onnx"}},
    "inputs": {"x": {"type": "f32", "dims": [1, "N"]}},
    "outputs": {"total": {"type": "f32", "dims": [1, "T*"]}},
    "state": {
        "kept": {"graph": "step", "ports": {"past": "present"}, "axis": 1, "tokens": "x", "scope": "session"},
        "seen": {"graph": "sum", "ports": {"past": "past"}, "axis": 1, "update": "read", "of": "kept"},
    },
    "steps": [
        {
            "loop": {
                "max": 2,
                "reset": ["kept"],
                "do": [
                    {"run": "step", "in": {"x": "x"}},
                    {"run": "sum", "out": {"total": "sum"}},
                    {"emit": {"total": "sum"}},
                ],
            }
        }
    ],
}
RING = "step (float[1,1] x, int64[1] at, float[1,4] past) => (float[1,4] present) { present = Identity (past) }"

MEDIA: Document = {
    "format": "1.0",
    "name": "media",
    "graphs": {"louder": {"file": "louder.onnx", "place": "host"}},
    "inputs": {
        "picture": {"type": "bytes", "description": "any format"},
        "sound": {"type": "audio", "dims": ["N"], "rate": 16000},
        "loud": {"type": "bool", "default": False},
        "seed": {"type": "i64", "default": 1},
    },
    "outputs": {
        "sound": {"type": "audio", "dims": ["N*"], "rate": 16000},
        "pixels": {"type": "u8", "dims": ["H", "W", 3]},
    },
    "steps": [
        {"run": "image.decode@1", "in": {"bytes": "picture"}, "out": {"pixels": "pixels"}},
        {"run": "random.normal@1", "in": {"seed": "seed"}, "with": {"shape": [1], "stream": 3}, "out": {"y": "noise"}},
        {"if": "loud", "then": [{"emit": {"sound": "noise"}}]},
        {"run": "louder", "in": {"x": "sound"}, "out": {"y": "louder"}},
        {"emit": {"sound": "louder", "pixels": "pixels"}},
    ],
}


def change(document: Document, *edits: tuple[Any, ...]) -> Document:
    """A copy with edits: each a path of keys and indices, then the new value; `...` as the value removes the key."""
    made = copy.deepcopy(document)
    for *path, last, value in edits:
        place: Any = made
        for key in path:
            place = place[key]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return made


def noted(document: Any) -> Any:
    """A copy with an `x-` note in every object whose keys the format fixes, as far as depth tells them."""
    made = change(document, ("x-note", {"any": [1, None]}))
    decoder = made["graphs"]["decoder"]
    generate = made["steps"][1]["generate"]
    kinds = [decoder, decoder["variants"][0], decoder["variants"][0]["when"], decoder["variants"][0]["state"]["kv"]]
    kinds += [made["inputs"]["prompt"], made["outputs"]["text"], made["state"]["kv"], made["text"], made["generation"]]
    kinds += [made["tests"][0], made["tests"][1]["in"]["messages"], *made["steps"], generate, generate["do"][0]]
    for item in kinds:
        item["x-note"] = None
    return made


def valid_cases() -> Iterator[Case]:
    """Documents that every reader accepts."""
    from . import adapters, drafts, prefixes, replies

    yield Case("small", "One graph, run once", SMALL, {"double.onnx": graph(DOUBLE)})
    yield Case("chat", "A chat model with a tuned variant and golden vectors", CHAT, CHAT_MEMBERS)
    yield Case("notes", "Keys that begin with x- are ignored wherever keys are fixed", noted(CHAT), CHAT_MEMBERS)
    yield Case("loops", "A loop in a loop, carried values, an index, an end", LOOPS, {"double.onnx": graph(DOUBLE)})
    members = {"step.onnx": graph(STEP), "sum.onnx": graph(SUM)}
    yield Case("states", "A growing state that another graph reads, emptied in each iteration", STATES, members)
    yield Case("media", "Bytes, audio, random numbers, an if without else", MEDIA, {"louder.onnx": graph(DOUBLE)})
    ring = change(
        STATES,
        ("state", "kept", {"graph": "step", "ports": {"past": "present"}, "axis": 1, "update": "ring", "window": 4}),
        ("steps", 0, "loop", "do", 0, "in", "at", "kept.len"),
    )
    yield Case("ring", "A sliding window", ring, {**members, "step.onnx": graph(RING)})
    asked = {
        "temperature": 0.7, "top_k": 40, "top_p": 1, "min_p": 0, "typical_p": 0.95, "repetition_penalty": 1.1,
        "frequency_penalty": -0.25, "presence_penalty": 0.5, "no_repeat_ngram_size": 3, "min_tokens": 1, "seed": 0,
        "max_tokens": 2, "stop": [],
    }  # fmt: skip
    yield Case("options", "Every default of a request", change(CHAT, ("generation", asked)), CHAT_MEMBERS)
    yield from adapters.valid()
    yield from replies.valid()
    yield from drafts.valid()
    yield from prefixes.valid()
    nothing = {"format": "1.0", "name": "nothing", "graphs": {}, "inputs": {}, "outputs": {}, "steps": []}
    yield Case("nothing", "All that is required, all of it empty", nothing)
    kept = {"weights/unused-00.bin": bytes(70_000), "docs/LICENSE": b"MIT\n", "double.onnx": graph(DOUBLE)}
    yield Case("chunks", "A shard with its digests, a member for people", SMALL, kept)
    newer = change(SMALL, ("format", "1.7"), ("colour", "blue"), ("steps", 0, "priority", 3))
    title, note = (
        "Unknown keys of a newer minor version are ignored",
        "The schema states 1.0; a newer minor has its own",
    )
    yield Case("newer-minor", title, newer, {"double.onnx": graph(DOUBLE)}, schema="invalid", note=note)


def invalid_cases() -> Iterator[Case]:
    """Documents that every reader refuses, each by its rule."""
    from . import adapters, drafts, grammar_faults, manifest_faults, prefixes, replies

    yield from manifest_faults.faults()
    yield from adapters.faults()
    yield from replies.faults()
    yield from drafts.faults()
    yield from prefixes.faults()
    yield from grammar_faults.faults()


@cache
def by_name(name: str) -> Case:
    """A valid case."""
    return next(case for case in valid_cases() if case.name == name)
