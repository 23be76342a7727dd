# SPDX-License-Identifier: Apache-2.0
"""Small bundles to run the command on, and the command itself as a function."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from genai_bundle.cli import app
from runner.tiny import COUNTER, bundle

WORDS = ["<end>", "one", "two", "three", "four", "five", "six", "seven"]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def command(*arguments: str | Path, stdin: str | None = None) -> Done:
    """``genai-bundle ARGUMENTS`` in this process. A fault of the program itself (exit code 1) fails the test."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code != 1, result.stderr
    return Done(result.exit_code, result.stdout, result.stderr)


def tokenizer() -> bytes:
    """One id for each of WORDS, split at spaces; `<end>` is special."""
    added = {"id": 0, "content": "<end>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**added, **flags}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "<end>"},
    }
    return json.dumps(document).encode()


def talker(target: Path, extra: dict[str, bytes] | None = None, **changes: Any) -> Path:
    """A bundle that counts on from the last word of its prompt or chat to `seven`; it has a variant and a test."""
    body = {"run": "decoder", "in": {"ids": "ids", "mask": "kv.mask"}, "out": {"logits": "logits"}}
    generate = {
        "carry": {"ids": "token"},
        "do": [body],
        "logits": "logits",
        "emit": {"text": "text.decode@1", "tokens": "token"},
    }
    encode = {"run": "text.encode@1", "in": {"text": "prompt"}, "out": {"ids": "ids"}}
    chat = {"run": "text.chat@1", "in": {"messages": "messages"}, "out": {"ids": "ids"}}
    variant = {"name": "ort-cpu", "when": {"backend": "onnxruntime", "device": "cpu"}, "file": "decoder.ort-cpu.onnx"}
    manifest: dict[str, Any] = {
        "name": "talker",
        "description": "counts to seven",
        "license": "Apache-2.0",
        "task": "text-generation",
        "graphs": {"decoder": {"file": "decoder.onnx", "variants": [variant]}},
        "inputs": {"prompt": {"type": "text", "optional": True}, "messages": {"type": "messages", "optional": True}},
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}, "text": {"type": "text", "dims": ["T*"]}},
        "state": {"kv": {"graph": "decoder", "ports": {"p": "q"}, "axis": 2, "tokens": "ids", "capacity": 64}},
        "text": {"tokenizer": "tokenizer.json", "template": "chat.jinja", "eos": [0]},
        "steps": [
            {"if": "messages", "then": [chat], "else": [encode], "out": ["ids"]},
            {"generate": generate},
        ],
        "tests": [{"name": "counts", "in": {"prompt": "five"}, "out": {"tokens": [[6, 7, 0]]}, "compare": "tokens"}],
    }
    template = b"{% for message in messages %}{{ message.content }} {% endfor %}"
    members = {"tokenizer.json": tokenizer(), "chat.jinja": template, **(extra or {})}
    graphs: dict[str, str | bytes] = {"decoder": COUNTER, "decoder.ort-cpu": COUNTER}
    return bundle(target, graphs, manifest | changes, **members)


def doubler(target: Path, **changes: Any) -> Path:
    """A bundle without text: audio in, twice its samples out."""
    graph = """
    double (float[n] x) => (float[n] y) { two = Constant <value = float {2.0}> () y = Mul (x, two) }
    """
    manifest = {
        "name": "doubler",
        "inputs": {"sound": {"type": "audio", "dims": ["N"], "rate": 8000}},
        "outputs": {"louder": {"type": "audio", "dims": ["N"], "rate": 8000}},
        "steps": [{"run": "double", "in": {"x": "sound"}, "out": {"y": "y"}}, {"emit": {"louder": "y"}}],
    }
    return bundle(target, {"double": graph}, manifest | changes)
