# SPDX-License-Identifier: Apache-2.0
"""`genai-bundle build` on a damaged checkpoint: one line that names file and key, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.samples import command
from families import write_json


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def no_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0hello")


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_json(folder / "model.safetensors.index.json", {"weight_map": places})


def other_tokenizer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"vocab_size": 100})


def unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"architectures": ["NoSuchThing"]})


def a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (cut_short, ["model.safetensors: b", "ends at byte 40"]),
        (no_header, ["model.safetensors", "header is not JSON"]),
        (missing_shard, ["model.safetensors.index.json", "model-00002-of-00002.safetensors", "'b'"]),
        (other_tokenizer, ["tokenizer.json", "258", "vocab_size"]),
        (unknown_architecture, ["config.json", "NoSuchThing"]),
        (a_pickle, ["model.safetensors is missing", "pytorch_model.bin"]),
    ],
)
def test_one_line_that_names_file_and_key(folder: Path, damage: Callable[[Path], None], names: list[str]) -> None:
    damage(folder)
    before = sorted(path.name for path in folder.iterdir())
    done = command("build", folder, "-o", folder / "x.genai")
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1)
    for name in names:
        assert name in done.err
    assert sorted(path.name for path in folder.iterdir()) == before
