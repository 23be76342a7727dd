# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle inspect``: the summary for people and for programs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cli.samples import command, talker
from runner.tiny import bundle as write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reply = {"calls": {"open": "[CALL]"}}
    text = {"tokenizer": "tokenizer.json", "template": "chat.jinja", "eos": [0], "reply": reply}
    source = {"repo": "a/b", "exporter": {"name": "hand"}}
    return talker(tmp_path_factory.mktemp("inspect") / "talker.genai", source=source, text=text)


def test_the_summary_names_what_a_person_asks_for(bundle: Path) -> None:
    done = command("inspect", bundle)
    assert (done.code, done.err) == (0, "")
    for words in (
        "talker", "counts to seven", "Apache-2.0", "text-generation", "sha256:", "published  a/b", "exporter   hand",
        "messages", "text*",
        "i64[1,T*]", "decoder.onnx", "ort-cpu", "when onnxruntime cpu", "opset 23", "append in [decoder]", "p ↔ q",
        'reply     {"calls": {"open": "[CALL]"}}', "tokenizer.json", "golden vectors: 1 (counts)",
    ):  # fmt: skip
        assert words in done.out, words


def test_the_pipeline_is_drawn(bundle: Path) -> None:
    lines = command("inspect", bundle).out.splitlines()
    start = lines.index("pipeline")
    assert [line.rstrip() for line in lines[start : start + 11]] == [
        "pipeline",
        "├── if messages is given → ids",
        "│   ├── then",
        "│   │   └── messages → text.chat@1 → ids",
        "│   └── else",
        "│       └── prompt:text → text.encode@1 → ids",
        "└── generate at most max_tokens tokens, until an end token or a stop string",
        "    ├── carry ids ← token",
        "    ├── ids, kv.mask:mask → [decoder] → logits   state kv (append)",
        "    ├── logits → sample → token",
        "    └── emit text.decode@1 ⇒ text, token ⇒ tokens",
    ]


def test_loops_literals_and_resets_are_drawn(tmp_path: Path) -> None:
    graph = "add (float[n] x) => (float[n] y) { one = Constant <value = float {1.0}> () y = Add (x, one) }"
    inner = {"run": "add", "in": {"x": "v"}, "out": {"y": "more"}}
    loop = {"carry": {"v": ["start", "more"]}, "max": 3, "index": "i", "do": [inner, {"emit": {"seen": "more"}}]}
    manifest = {
        "outputs": {"seen": {"type": "f32", "dims": ["T*"]}},
        "steps": [{"run": "zeros@1", "with": {"shape": [1]}, "out": {"y": "start"}}, {"loop": loop}],
    }
    out = command("inspect", write(tmp_path / "loop.genai", {"add": graph}, manifest)).out
    assert "shape=[1] → zeros@1 → y:start" in out
    assert "loop at most 3 times, index i" in out
    assert "carry v ← start, then more" in out
    assert "emit more ⇒ seen" in out


def test_json_has_the_facts(bundle: Path) -> None:
    facts = command("inspect", bundle, "--json").json
    assert facts["form"] == "file"
    assert facts["size"] == bundle.stat().st_size
    assert facts["inputs"]["prompt"] == {"type": "text", "required": False}
    assert facts["outputs"]["tokens"] == {"type": "i64[1,T*]"}
    decoder = facts["graphs"]["decoder"]
    assert decoder["opset"] == {"": 23}
    assert decoder["operators"]["Constant"] == 8
    assert sum(decoder["operators"].values()) == decoder["nodes"]
    assert decoder["inputs"]["ids"] == "i64[batch,seq]"
    assert [variant["name"] for variant in decoder["variants"]] == ["ort-cpu"]
    assert facts["state"]["kv"]["capacity"] == 64
    assert facts["tests"] == [{"name": "counts", "inputs": ["prompt"], "outputs": ["tokens"]}]


def test_the_folder_form_has_the_same_id(bundle: Path, tmp_path: Path) -> None:
    command("unpack", bundle, tmp_path / "folder")
    found = command("inspect", tmp_path / "folder", "--json").json
    manifest = (tmp_path / "folder" / "manifest.json").read_bytes()
    assert found["id"] == "sha256:" + hashlib.sha256(manifest).hexdigest()
    assert found["form"] == "folder"
    assert found["members"] == command("inspect", bundle, "--json").json["members"]
    assert {member["path"] for member in found["members"]} == set(json.loads(manifest)["files"])


def test_an_invalid_bundle_is_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "x.genai").write_bytes(b"PK\x03\x04")
    done = command("inspect", tmp_path / "x.genai")
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1)
