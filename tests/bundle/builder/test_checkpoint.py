# SPDX-License-Identifier: Apache-2.0
"""A checkpoint folder is read without torch, and refused with the file and the key that is wrong."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genai_bundle.builder.checkpoint import UNLIMITED, generation_defaults, read_checkpoint
from genai_bundle.errors import SourceError


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, made if absent; None removes one."""
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    value |= changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}), encoding="utf-8")


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a safetensors file and leave its data."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    change(header)
    fresh = json.dumps(header).encode()
    path.write_bytes(len(fresh).to_bytes(8, "little") + fresh + raw[end:])


def shard(folder: Path, weight_map: dict[str, Any]) -> None:
    """Turn the folder's one file into the first of two shards."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    edit(folder / "model.safetensors.index.json", weight_map=weight_map)


def test_reads_without_torch(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert list(checkpoint.tensors) == ["a", "b"]
    tensor = checkpoint.tensors["a"]
    assert (tensor.dtype, tensor.shape, tensor.file) == ("F32", (2, 3), "model.safetensors")
    assert np.frombuffer(tensor.data, "<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert tensor.data.readonly
    assert checkpoint.context == 64
    assert checkpoint.text.eos == (2,)
    assert checkpoint.text.special == {"bos_token": "<s>", "eos_token": "</s>"}
    assert checkpoint.text.template is None
    assert "genai_bundle.builder.reference" not in sys.modules or "torch" in sys.modules


def test_digests_are_those_of_the_files_that_were_read(folder: Path) -> None:
    digests = read_checkpoint(folder).digests()
    assert list(digests) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name, digest in digests.items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.shared
def test_a_real_checkpoint(shared: Path) -> None:
    checkpoint = read_checkpoint(shared / "checkpoints" / "stories260K")
    assert len(checkpoint.tensors) == 47
    assert checkpoint.context == 512
    assert checkpoint.text.eos == (2,)
    assert checkpoint.generation == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "model.safetensors is missing"),
        ("tokenizer.json", "tokenizer.json is missing"),
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(SourceError, match=message):
        read_checkpoint(folder)


def test_a_pickle_is_no_substitute(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin is a pickle, which runs code"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_json_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{", encoding="utf-8")
    with pytest.raises(SourceError, match=rf"^{name}: "):
        read_checkpoint(folder)


def test_a_file_cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SourceError, match=r"model\.safetensors: b: ends at byte 40 of the data, but the file holds 36"):
        read_checkpoint(folder)


@pytest.mark.parametrize("raw", [b"", b"1234567", b"\xff" * 40, (200).to_bytes(8, "little") + b"{}"])
def test_no_safetensors_header(folder: Path, raw: bytes) -> None:
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(SourceError, match=r"^model\.safetensors: "):
        read_checkpoint(folder)


def test_a_header_that_is_not_json(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"\xff{}}")
    with pytest.raises(SourceError, match="the header is not JSON"):
        read_checkpoint(folder)


def test_a_tensor_named_twice(folder: Path) -> None:
    entry = '"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}'
    raw = f"{{{entry}, {entry}}}".encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
    with pytest.raises(SourceError, match="the header names 'a' twice"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F12"}, "has the unknown dtype 'F12'"),
        ({"shape": [2, -3]}, r"has the shape \[2, -3\]"),
        ({"shape": [2, 2]}, r"covers 24 bytes, but F32 \[2, 2\] takes 16"),
        ({"data_offsets": [24, 0]}, r"data_offsets \[24, 0\]"),
        ({"data_offsets": [16, 40]}, "holds|begins at byte 16"),
        ({"data_offsets": [0, 400], "shape": [100]}, "ends at byte 400"),
        ({"dtype": None}, "has the unknown dtype None"),
    ],
)
def test_a_header_entry_that_lies(folder: Path, change: dict[str, Any], message: str) -> None:
    rewrite_header(folder / "model.safetensors", lambda header: header["a"].update(change))
    with pytest.raises(SourceError, match=message):
        read_checkpoint(folder)


def test_bytes_that_no_tensor_covers(folder: Path) -> None:
    rewrite_header(folder / "model.safetensors", lambda header: header.pop("b"))
    with pytest.raises(SourceError, match="holds 16 bytes after its last tensor"):
        read_checkpoint(folder)


def test_shards(folder: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    shard(folder, {"a": name, "b": name})
    checkpoint = read_checkpoint(folder)
    assert set(checkpoint.tensors) == {"a", "b"}
    assert {"model.safetensors.index.json", name} <= set(checkpoint.members)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("model-00002-of-00002.safetensors", "the shard model-00002-of-00002.safetensors, which holds 'c', is missing"),
        ("model-00001-of-00002.safetensors", "places 'c' in model-00001-of-00002.safetensors, which does not hold it"),
        ("../model.safetensors", "expected a file name of the same folder"),
        (7, "expected a file name of the same folder"),
    ],
)
def test_an_index_that_lies(folder: Path, entry: Any, message: str) -> None:
    shard(folder, {"a": "model-00001-of-00002.safetensors", "c": entry})
    with pytest.raises(SourceError, match=message) as caught:
        read_checkpoint(folder)
    assert str(caught.value).startswith("model.safetensors.index.json: ")


def test_an_index_without_a_map(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SourceError, match="weight_map is missing"):
        read_checkpoint(folder)


def test_a_tokenizer_with_more_tokens_than_the_embedding(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=258)
    with pytest.raises(SourceError, match="holds the token id 258, but the embedding has 258 rows"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": None}, "vocab_size is None"),
        ({"model_type": None}, "model_type is missing"),
        ({"quantization_config": {"bits": 4}}, "quant_method is None"),
    ],
)
def test_a_config_that_cannot_be_built(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(SourceError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"n_positions": 32}, 32),
        ({"n_ctx": 48}, 48),
        ({"text_config": {"vocab_size": 300, "max_position_embeddings": 16}}, 16),
        ({}, UNLIMITED),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 2.5}}, 160),
        ({"max_position_embeddings": 64, "rope_parameters": {"rope_type": "yarn", "factor": 2.5}}, 64),
    ],
)
def test_the_context_by_the_names_that_families_give_it(folder: Path, config: dict[str, Any], context: int) -> None:
    edit(folder / "config.json", **({"max_position_embeddings": None} | config))
    assert read_checkpoint(folder).context == context


def test_a_context_that_is_none(folder: Path) -> None:
    edit(folder / "config.json", max_position_embeddings="long")
    with pytest.raises(SourceError, match="max_position_embeddings is 'long'"):
        read_checkpoint(folder)


def test_all_end_tokens_each_once(folder: Path) -> None:
    """The end of a turn often stands in one of the places only: a missed id is a model that never stops."""
    edit(folder / "generation_config.json", eos_token_id=[7, 5])
    edit(folder / "config.json", eos_token_id=5)
    assert read_checkpoint(folder).text.eos == (7, 5, 2)


@pytest.mark.parametrize("value", [-1, "2", 300])
def test_an_end_token_that_is_none(folder: Path, value: object) -> None:
    edit(folder / "generation_config.json", eos_token_id=value)
    with pytest.raises(SourceError, match="eos_token_id"):
        read_checkpoint(folder)


def test_the_template_in_each_place_and_the_stronger_one(folder: Path) -> None:
    edit(folder / "chat_template.json", chat_template="third")
    assert read_checkpoint(folder).text.template == "third"
    edit(folder / "tokenizer_config.json", chat_template="second")
    assert read_checkpoint(folder).text.template == "second"
    (folder / "chat_template.jinja").write_text("first", encoding="utf-8")
    checkpoint = read_checkpoint(folder)
    assert checkpoint.text.template == "first"
    assert "chat_template.jinja" in checkpoint.members


def test_the_default_of_several_templates(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    assert read_checkpoint(folder).text.template == "plain"
    edit(folder / "tokenizer_config.json", chat_template=named[:1])
    with pytest.raises(SourceError, match="one named 'default'"):
        read_checkpoint(folder)


def test_special_tokens_from_both_files(folder: Path) -> None:
    edit(folder / "special_tokens_map.json", pad_token="<pad>", bos_token="<old>")
    edit(
        folder / "tokenizer_config.json",
        eos_token={"content": "</s>", "lstrip": False},
        extra_special_tokens={"image_token": "<image>"},
    )
    assert read_checkpoint(folder).text.special == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "image_token": "<image>",
        "pad_token": "<pad>",
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.7, "top_k": 20}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1},
            {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1},
        ),
        (
            {"do_sample": True, "typical_p": 0.8, "no_repeat_ngram_size": 3},
            {"temperature": 1.0, "top_k": 50, "typical_p": 0.8, "no_repeat_ngram_size": 3},
        ),
        ({"no_repeat_ngram_size": 0}, {"temperature": 0.0}),
        ({"max_new_tokens": 64, "stop_strings": "."}, {"temperature": 0.0, "max_tokens": 64, "stop": ["."]}),
    ],
)
def test_generation_defaults(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert generation_defaults(config) == expected


def test_generation_defaults_of_the_wrong_type() -> None:
    with pytest.raises(SourceError, match="top_p is 'high', expected a number"):
        generation_defaults({"do_sample": True, "top_p": "high"})
