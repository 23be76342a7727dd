# SPDX-License-Identifier: Apache-2.0
"""`genai-bundle build` on a damaged checkpoint: one line that names file and key, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bundle.builder.conftest import safetensors_bytes
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


def four_bit_floats(folder: Path) -> None:
    """Experts as gpt-oss is published: blocks of 32 elements of four bits, each with an exponent."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    form = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    named = {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "quantization_config": form}
    write_json(folder / "config.json", config | named)
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {
        f"{experts}_blocks": np.zeros((2, 64, 1, 16), np.uint8),
        f"{experts}_scales": np.zeros((2, 64, 1), np.uint8),
    }
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))


def pieces_of_two_languages(folder: Path) -> None:
    """A translator of Marian's as it is published."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = {"model_type": "marian", "architectures": ["MarianMTModel"], "is_encoder_decoder": True}
    write_json(folder / "config.json", config | named)
    (folder / "tokenizer.json").unlink()
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(b"pieces")
    write_json(folder / "vocab.json", {"</s>": 0, "<unk>": 1})


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (cut_short, ["model.safetensors: b", "ends at byte 40"]),
        (no_header, ["model.safetensors", "header is not JSON"]),
        (missing_shard, ["model.safetensors.index.json", "model-00002-of-00002.safetensors", "'b'"]),
        (other_tokenizer, ["tokenizer.json", "258", "vocab_size"]),
        (unknown_architecture, ["config.json", "NoSuchThing"]),
        (a_pickle, ["model.safetensors is missing", "pytorch_model.bin"]),
        (four_bit_floats, ["config.json", "quant_method is 'mxfp4'", "a version whose weights are floats"]),
        (pieces_of_two_languages, ["tokenizer.json is missing", "source.spm and target.spm", "Put a tokenizer.json"]),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int3"], "--quantize: weights cannot be stored as 'int3'. Known: int4, int8, fp32, fp16, bf16"),
        (["--quantize-override", "a=q4"], "--quantize-override: weights cannot be stored as 'q4'"),
        (["--quantize", "int4", "--block-size", "48"], "--block-size: a block of 48 elements cannot be had"),
        (["--perplexity", "text.txt"], "Give --quantize too"),
        (["--quantize", "int4", "--perplexity", "absent.txt"], "absent.txt: cannot be read as text"),
        (["--exporter", "other"], "no exporter for this kind of model is called 'other'. Known: transformers"),
        (["--adapter", "a/b=lora"], "'a/b' cannot be an adapter's name"),
        (["--adapter", "pirate=absent"], "absent"),
    ],
)
def test_a_wrong_option_is_refused_whatever_is_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr("genai_bundle.builder.from_checkpoint.find_spec", lambda name: None)
    done = command("build", folder, "-o", folder / "x.genai", *options)
    assert (done.code in (2, 3), done.out, done.err.count("\n")) == (True, "", 1)
    assert message in done.err
    assert "pip install" not in done.err
    assert not (folder / "x.genai").exists()


def test_a_wrong_option_is_refused_before_the_source_is_read(tmp_path: Path) -> None:
    done = command("build", tmp_path, "-o", tmp_path / "x.genai", "--quantize", "int3")
    assert done.code == 2
    assert "'int3'" in done.err


@pytest.mark.torch
@pytest.mark.parametrize("more", [{}, {"auto_map": {"AutoConfig": "code.FooConfig"}}])
def test_an_unknown_model_type_needs_no_torch_to_be_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, object]
) -> None:
    from genai_bundle.builder import from_checkpoint

    present = from_checkpoint.find_spec
    monkeypatch.setattr(from_checkpoint, "find_spec", lambda name: None if name == "torch" else present(name))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"model_type": "foo", "architectures": ["FooForCausalLM"]} | more)
    done = command("build", folder, "-o", folder / "x.genai")
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1)
    assert "config.json: model_type is 'foo', which transformers " in done.err
    assert ("auto_map" in done.err) == bool(more)
