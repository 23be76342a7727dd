# SPDX-License-Identifier: Apache-2.0
"""Folders of sentence-transformers, compared with their definition in NumPy.

sentence-transformers 5.7.0 itself, asked once for mean, cls and max with random models, gave the same to 2e-6.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from bundle.builder.conftest import safetensors_bytes
from bundle.importers import tiny
from cli.samples import tokenizer
from genai_bundle.builder.build import build
from genai_bundle.builder.options import BuildOptions
from genai_bundle.errors import SourceError
from genai_runner import load

PREFIX = "sentence_transformers.models."
TEXT = "one two three four five six seven"
LONGEST = 6


def special_tokenizer() -> bytes:
    """The small one, with `<end>` before and behind each text, as [CLS] and [SEP] are."""
    document = json.loads(tokenizer())
    end = {"SpecialToken": {"id": "<end>", "type_id": 0}}
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [end, {"Sequence": {"id": "A", "type_id": 0}}, end],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<end>": {"id": "<end>", "ids": [0], "tokens": ["<end>"]}},
    }
    return json.dumps(document).encode()


def write(folder: Path, pooling: dict[str, Any], normalised: bool = True) -> Path:
    (folder / "onnx").mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": PREFIX + kind}
        for index, (path, kind) in enumerate(kinds if normalised else kinds[:2])
    ]
    tiny.write_json(folder / "modules.json", modules)
    tiny.write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": tiny.WIDTH} | pooling)
    tiny.write_json(folder / "sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    tiny.write_json(folder / "config.json", {"vocab_size": tiny.WORDS, "max_position_embeddings": 32})
    prompts = {"__version__": {}, "prompts": {"query": "find: "}, "default_prompt_name": None}
    tiny.write_json(folder / "config_sentence_transformers.json", prompts)
    (folder / "tokenizer.json").write_bytes(special_tokenizer())
    (folder / "model.safetensors").write_bytes(b"not read")
    onnx.save(tiny.encoder(types=True), folder / "onnx" / "model.onnx")
    return folder


def vectors(ids: Sequence[int]) -> NDArray[np.float32]:
    run = ort.InferenceSession(tiny.encoder(types=True).SerializeToString(), providers=["CPUExecutionProvider"])
    row = np.array([ids])
    feeds = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
    found: NDArray[np.float32] = run.run(None, feeds)[0][0]
    return found


def imported(folder: Path, **options: Any) -> Path:
    target = folder.parent / f"{folder.name}.genai"
    build(folder, target, BuildOptions(overwrite=True, **options))
    return target


POOLED = {
    "mean": lambda x: x.sum(0) / len(x),
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "weightedmean": lambda x: sum(x[i] * (i + 1) for i in range(len(x))) / sum(range(1, len(x) + 1)),
    "lasttoken": lambda x: x[-1],
}


@pytest.mark.parametrize("mode", POOLED)
@pytest.mark.parametrize("normalised", [True, False])
def test_every_way_of_pooling(mode: str, normalised: bool, tmp_path: Path) -> None:
    """A text that is too long loses words, and keeps the special token at its end."""
    folder = write(tmp_path / "x", {"pooling_mode": mode}, normalised)
    expected = {text: POOLED[mode](vectors(ids)) for text, ids in {"two": [0, 2, 0], TEXT: [0, 1, 2, 3, 4, 0]}.items()}
    with load(imported(folder), threads=1) as pipeline:
        for text, value in expected.items():
            wanted = value / np.linalg.norm(value) if normalised else value
            assert np.allclose(pipeline(text=text).outputs["embedding"], wanted[None], atol=1e-5)


def test_flags_of_earlier_releases_and_several_ways_joined(tmp_path: Path) -> None:
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}
    folder = write(tmp_path / "x", flags, normalised=False)
    found = vectors([0, 2, 0])
    with load(imported(folder), threads=1) as pipeline:
        embedding = pipeline(text="two").outputs["embedding"]
    assert np.allclose(embedding[0], np.concatenate([found[0], found.mean(0)]), atol=1e-5)


@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_a_dense_layer_behind_the_pooling(activation: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"pooling_mode": "mean"})
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": PREFIX + "Dense"})
    tiny.write_json(folder / "modules.json", modules)
    (folder / "2_Dense").mkdir()
    named = {"in_features": tiny.WIDTH, "out_features": 5, "bias": True}
    tiny.write_json(
        folder / "2_Dense" / "config.json", named | {"activation_function": f"torch.nn.modules.x.{activation}"}
    )
    weights = tiny.weights(4, weight=(5, tiny.WIDTH), bias=(5,))
    tensors = {f"linear.{name}": one for name, one in weights.items()}
    (folder / "2_Dense" / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    value = vectors([0, 2, 0]).mean(0) @ weights["weight"].T + weights["bias"]
    value = np.tanh(value) if activation == "Tanh" else value
    with load(imported(folder), threads=1) as pipeline:
        embedding = pipeline(text="two").outputs["embedding"]
    assert np.allclose(embedding, value[None] / np.linalg.norm(value), atol=1e-5)
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"model\.safetensors is missing"):
        imported(folder)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": True}, "do_lower_case = True"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default_prompt_name = 'query'"),
        ("1_Pooling/config.json", {"pooling_mode": "best"}, "1_Pooling/config.json: pooling_mode: is 'best'"),
        ("1_Pooling/config.json", {}, "states no way of pooling"),
        (
            "modules.json",
            [{"type": PREFIX + "Transformer", "path": ""}, {"type": PREFIX + "Dense"}],
            "expected a Trans",
        ),
        ("modules.json", {}, "expected a list of objects"),
    ],
)
def test_what_is_not_understood_is_refused(file: str, content: Any, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"pooling_mode": "mean"})
    tiny.write_json(folder / file, content)
    with pytest.raises(SourceError) as caught:
        imported(folder)
    assert words in str(caught.value)
