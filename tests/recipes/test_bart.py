# SPDX-License-Identifier: Apache-2.0
"""A trained encoder-decoder: cross-attention filled once, self-attention that grows, greedy against known phonemes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import genai_runner
from genai_bundle.builder.recipe import build_recipe
from recipes.bart_g2p import make

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def bart(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bart")
    make(shared / "models" / "bart-g2p", folder)
    shutil.copy(Path(__file__).parent / "bart-g2p.yaml", folder)
    build_recipe(folder / "bart-g2p.yaml", folder / "bart.genai")
    return folder / "bart.genai"


@pytest.mark.parametrize("literal", [False, True], ids=["engine", "literal"])
def test_known_words(bart: Path, shared: Path, backend: str, literal: bool) -> None:
    """golden_greedy.json was computed in float64 with NumPy, without a cache."""
    source = shared / "models" / "bart-g2p"
    golden = json.loads((source / "golden_greedy.json").read_text(encoding="utf-8"))
    phonemes = json.loads((source / "us_bart_config.json").read_text(encoding="utf-8"))["phoneme_chars"]
    words = list(golden) if backend == "onnxruntime" else list(golden)[:3]
    with genai_runner.load(bart, backend, literal=literal, threads=1) as pipeline:
        for word in words:
            result = pipeline(word)
            assert "".join(phonemes[token] for token in result.tokens if token > 3) == golden[word]
            assert (result.tokens[-1], result.finish_reason) == (2, "stop")


def test_weights_are_stored_once(bart: Path) -> None:
    """Both graphs embed with the same matrix, but a shard belongs to one graph; the rest is there once."""
    with genai_runner.load(bart, threads=1) as pipeline:
        sizes = {path: entry.size for path, entry in pipeline.manifest.files.items()}
    assert sorted(path for path in sizes if path.startswith("weights/")) == [
        "weights/decoder-00.bin",
        "weights/encoder-00.bin",
    ]
    assert sizes["encoder.onnx"] < 20_000
    assert sizes["decoder.onnx"] < 20_000


def test_token_by_token(bart: Path) -> None:
    """The mid-level interface over an encoder-decoder: forget two tokens, and the same ones come again."""
    with genai_runner.load(bart, threads=1) as pipeline:
        expected = pipeline("onnx").tokens
        generator = pipeline.generator("onnx")
        assert [generator.generate_next_token() for _ in range(4)] == expected[:4]
        generator.rewind_to(3)
        assert [generator.generate_next_token() for _ in range(2)] == expected[2:4]
