# SPDX-License-Identifier: Apache-2.0
"""A bundle exported to openvino gives its greedy tokens in openvino-genai; what cannot be said is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bundle.exports.peer import exported, prompts
from cli import samples
from conftest import optional
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import UsageError
from genai_bundle.exports import choose
from genai_runner import load
from runner.tiny import COUNTER, counter, model

pytestmark = [pytest.mark.openvino, pytest.mark.peers, pytest.mark.torch]
ov = optional("openvino", "openvino")
runtime = optional("openvino_genai", "peers")

from genai_runner.backends._openvino_export import UnfitError, write_decoder  # noqa: E402
from genai_runner.backends.base import StatePort  # noqa: E402

EXACT = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
TEXTS = ("Once upon a time", "One day  a small dog\n went home. ", "Ünïcode, 今日 🙂", "<|eos|>x", "")


@pytest.fixture(scope="module")
def folder(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(sample, tmp_path_factory.mktemp("openvino") / "sample", "openvino")


@pytest.fixture(scope="module")
def peer(folder: Path) -> Any:
    return runtime.LLMPipeline(folder, "CPU", **EXACT)


def greedy(peer: Any, given: Any, steps: int) -> list[int]:
    config = runtime.GenerationConfig(max_new_tokens=steps, do_sample=False, apply_chat_template=False)
    found: list[int] = peer.generate(given, config).tokens[0]
    return found


def ids_of(peer: Any, given: Mapping[str, Any]) -> Any:
    tokenizer = peer.get_tokenizer()
    if "messages" not in given:
        return tokenizer.encode(given["prompt"]).input_ids
    text = tokenizer.apply_chat_template(given["messages"], add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False).input_ids


def test_the_peer_gives_the_source_model_s_tokens(peer: Any, sample: Path) -> None:
    for given, tokens in prompts(sample):
        assert greedy(peer, ids_of(peer, given), given["max_tokens"])[: len(tokens)] == tokens


def test_the_peer_gives_the_runner_s_tokens_one_prompt_after_another(peer: Any, sample: Path) -> None:
    texts = ("One day a small dog went to the park and saw a big red ball under a tree. " * 5, "Lily", "One day a")
    with load(sample) as pipeline:
        for text in texts:
            ids = np.array([pipeline.encode(text)])
            assert greedy(peer, ov.Tensor(ids), 30) == pipeline(text, max_tokens=30, temperature=0).tokens


def test_the_tokenizer_gives_the_ids_and_the_text_of_the_bundle_s(peer: Any, sample: Path) -> None:
    tokenizer = peer.get_tokenizer()
    with load(sample) as pipeline:
        for text in TEXTS[:-1]:
            ids = pipeline.encode(text)
            assert tokenizer.encode(text).input_ids.data[0].tolist() == ids
            assert tokenizer.decode(ids) == pipeline.decode(ids)


def test_what_the_folder_says(folder: Path) -> None:
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [1, 6]
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 512
    about = json.loads((folder / "genai-bundle-export.json").read_text())
    assert (about["target"], about["variant"]) == ("openvino", "portable")
    assert any("chat template" in line for line in about["lost"])
    assert not {path.suffix for path in folder.iterdir()} - {".xml", ".bin", ".json", ".jinja"}


def test_what_the_runtime_cannot_do_is_refused(tmp_path: Path) -> None:
    with open_bundle(counter(tmp_path / "x.genai")) as opened, pytest.raises(UsageError, match="it has no tokenizer"):
        choose("openvino").plan(opened, "auto")


def test_what_the_engine_computes_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cuts such a constant to 32 bits, and says nothing."""
    far = "huge = Constant <value = int64 {3000000000}> () far = Add (ids, huge) near = Sub (far, huge)"
    monkeypatch.setattr(samples, "COUNTER", COUNTER.replace("next = Add (ids, one)", f"{far} next = Add (near, one)"))
    path = samples.talker(tmp_path / "x.genai")
    wrong = "decoder.onnx: node 'far': Add .int64 constants beyond 32 bits. is computed wrongly"
    with open_bundle(path) as opened, pytest.raises(UsageError, match=wrong):
        choose("openvino").plan(opened, "auto")


def test_a_cache_that_outlives_a_reset_is_refused(tmp_path: Path) -> None:
    """Attention that is not fused: this graph only counts."""
    names = {"ids": "input_ids", "mask": "attention_mask", "logits": "logits"}
    graph = onnx.load_from_string(model(COUNTER))
    with pytest.raises(UnfitError, match="not empty again"):
        write_decoder(graph, {}, [StatePort("p", "q", "append", 2)], names, tmp_path)
    with pytest.raises(UnfitError, match="cannot be a variable"):
        write_decoder(graph, {}, [StatePort("p", "other", "append", 2)], names, tmp_path)
    assert not list(tmp_path.iterdir())
