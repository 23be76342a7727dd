# SPDX-License-Identifier: Apache-2.0
"""A folder whose tokenizer is in a form older than tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from conftest import optional
from families import write_json
from genai_bundle.builder.text_assets import read_text_assets
from genai_bundle.errors import SourceError

pytestmark = pytest.mark.torch
TEXT = "The hat, the hat\nof Zoë"


def gpt2_files(path: Path) -> None:
    """vocab.json and merges.txt as GPT-2 had them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "th", "at", "Ġth", "<|endoftext|>"]
    write_json(path / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (path / "merges.txt").write_text("#version: 0.2\nt h\na t\nĠ th\n", encoding="utf-8")
    write_json(path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})


def test_transformers_converts_it(tmp_path: Path) -> None:
    transformers = optional("transformers", "torch")
    write_json(tmp_path / "config.json", {"model_type": "gpt2"})
    gpt2_files(tmp_path)
    assets = read_text_assets(tmp_path, {}, {})
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"]
    assert Tokenizer.from_str(assets.tokenizer.decode()).encode(TEXT).ids == expected
    assert {258, 257, 256} & set(expected)  # merges were applied
    assert assets.files == ("vocab.json", "merges.txt", "tokenizer_config.json")
    assert json.loads(assets.tokenizer)["model"]["type"] == "BPE"


def test_what_it_cannot_convert_is_refused_with_the_reason(tmp_path: Path) -> None:
    optional("transformers", "torch")
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(SourceError, match=r"tokenizer.json is missing; transformers cannot convert tokenizer.model: "):
        read_text_assets(tmp_path, {}, {})


def test_without_transformers_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genai_bundle.builder.text_assets.find_spec", lambda _: None)
    gpt2_files(tmp_path)
    with pytest.raises(SourceError, match=r"vocab.json, merges.txt alone is not enough.*save_pretrained"):
        read_text_assets(tmp_path, {}, {})
