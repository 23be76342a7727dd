# SPDX-License-Identifier: Apache-2.0
"""A plain folder: ONNX's own tools and onnxruntime load it, and the program in its README gives the bundle's tokens."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer

from bundle.exports.peer import exported, prompts
from bundle.weighty import weighty
from genai_bundle.bundle import open_bundle
from runner.tiny import bundle, counter

DATA = "model.onnx.data"


def program(folder: Path, *arguments: str) -> list[str]:
    """The lines that the program in README.md prints."""
    [code] = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("variant", ["auto", "ort-cpu"])
def test_the_program_gives_the_bundle_s_tokens(variant: str, sample: Path, tmp_path: Path) -> None:
    folder = exported(sample, tmp_path / "out", "folder", variant)
    given, tokens = prompts(sample)[0]
    assert given["max_tokens"] == 24
    found, *_ = program(folder, given["prompt"])
    assert ast.literal_eval(found) == tokens


def test_a_bundle_of_ids_runs_as_well(tmp_path: Path) -> None:
    """COUNTER's cache and mask matter for its logits; here they only have to be fed."""
    folder = exported(counter(tmp_path / "x.genai"), tmp_path / "out", "folder")
    [line] = program(folder, "2", "3")
    assert ast.literal_eval(line)[:4] == [4, 5, 6, 7]
    assert not (folder / "tokenizer.json").exists()


def test_onnx_s_own_tools_load_it(sample: Path, tmp_path: Path) -> None:
    folder = exported(sample, tmp_path / "out", "folder")
    onnx.checker.check_model(str(folder / "decoder.onnx"))
    loaded = onnx.load(folder / "decoder.onnx")
    with open_bundle(sample) as opened:
        shard = opened.read("weights/decoder-00.bin")
        placed = {
            tensor.name: {item.key: item.value for item in tensor.external_data}
            for tensor in opened.graph("decoder.onnx").graph.initializer
            if tensor.external_data
        }
    assert placed
    for tensor in loaded.graph.initializer:
        if tensor.name in placed:
            start, count = (int(placed[tensor.name][key]) for key in ("offset", "length"))
            assert tensor.raw_data == shard[start : start + count]
    session = onnxruntime.InferenceSession(folder / "decoder.onnx")
    assert session.get_outputs()[0].name == "logits"


def test_its_text_files_are_the_bundle_s(sample: Path, tmp_path: Path) -> None:
    folder = exported(sample, tmp_path / "out", "folder")
    with open_bundle(sample) as opened:
        assert (folder / "tokenizer.json").read_bytes() == opened.read("tokenizer.json")
        assert (folder / "chat_template.jinja").read_bytes() == opened.read("chat_template.jinja")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["eos_token"], settings["pad_token"]) == ("<|eos|>", "<|pad|>")
    defaults = json.loads((folder / "generation_config.json").read_text())
    assert defaults == {
        "bos_token_id": 0, "pad_token_id": 2, "eos_token_id": [1, 6],
        "do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.95,
    }  # fmt: skip
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Once").ids


@pytest.mark.torch
def test_transformers_reads_the_text_files(sample: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    folder = exported(sample, tmp_path / "out", "folder")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with open_bundle(sample) as opened:
        whole = Tokenizer.from_buffer(opened.read("tokenizer.json"))
    assert tokenizer("Once upon a time").input_ids == whole.encode("Once upon a time").ids
    assert "Hi" in tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [1, 6]


def test_two_graphs_share_one_file_of_weights(tmp_path: Path) -> None:
    """Any pipeline can be exported; README then shows the ports, and pipeline.json the steps."""
    add = "a (float[N] x) => (float[N] y) { y = Add (x, x) }"
    steps = [
        {"run": "first", "in": {"x": "x"}, "out": {"y": "y"}},
        {"run": "second", "in": {"x": "y"}, "out": {"y": "z"}},
        {"emit": {"z": "z"}},
    ]
    source = bundle(
        tmp_path / "x.genai",
        {"first": add, "second": add},
        {
            "inputs": {"x": {"type": "f32", "dims": ["N"]}},
            "outputs": {"z": {"type": "f32", "dims": ["N"]}},
            "steps": steps,
        },
    )
    folder = exported(source, tmp_path / "out", "folder")
    assert program(folder)[0] == "first.onnx"
    assert json.loads((folder / "pipeline.json").read_text())["steps"] == steps
    assert not (folder / DATA).exists()


def test_equal_tensors_are_written_once(sample: Path, tmp_path: Path) -> None:
    folder = exported(sample, tmp_path / "out", "folder", "ort-cpu")
    entries = [
        {item.key: item.value for item in tensor.external_data}
        for tensor in onnx.load(folder / "decoder.onnx", load_external_data=False).graph.initializer
        if tensor.external_data
    ]
    ends = sorted({(int(entry["offset"]), int(entry["length"])) for entry in entries})
    assert all(offset % 64 == 0 for offset, _ in ends)
    assert (folder / DATA).stat().st_size == sum(ends[-1])
    assert {entry["location"] for entry in entries} == {DATA}


def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    """64 MiB of weights pass from the mapping to the file in blocks."""
    source = weighty(tmp_path / "x.genai", {"big": np.arange(1 << 24, dtype=np.float32)})
    tracemalloc.start()
    folder = exported(source, tmp_path / "out", "folder")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20
    [tensor] = [one for one in onnx.load(folder / "add.onnx").graph.initializer if one.name == "big"]
    assert onnx.numpy_helper.to_array(tensor)[-1] == (1 << 24) - 1
