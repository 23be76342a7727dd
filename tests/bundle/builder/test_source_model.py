# SPDX-License-Identifier: Apache-2.0
"""A model too large for memory is asked module by module, and answers what transformers' own loading answers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from conftest import optional

pytestmark = pytest.mark.torch
optional("transformers", "torch")

from families import FAMILIES  # noqa: E402
from genai_bundle.builder import prove, source_model  # noqa: E402
from genai_bundle.builder.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from genai_bundle.builder.reference import Question, Reference, reference_greedy  # noqa: E402
from genai_bundle.builder.tensors import WeightTensor  # noqa: E402
from genai_bundle.errors import ProofError  # noqa: E402

PROMPTS = [[1], [1, 40, 50, 60, 70], list(range(30, 49))]


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_model, "LOADED", 0)


def same(got: list[Any], expected: list[Any]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert (one.ids, one.tokens, one.offset) == (other.ids, other.tokens, other.offset)
        np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=1e-4)
        for side in ("keys", "values"):
            for a, b in zip(getattr(one, side), getattr(other, side), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("streamed")
def test_the_same_answers_as_rows_of_a_batch(tiny: Path, tiny_goldens: Any) -> None:
    assert Reference(tiny).takes_rows
    same(reference_greedy(tiny, PROMPTS, 20), tiny_goldens)


@pytest.mark.usefixtures("streamed")
def test_the_same_answers_one_by_one(tiny: Path, tiny_goldens: Any) -> None:
    reference = Reference(tiny)
    same([reference.greedy(Question(ids), 20) for ids in PROMPTS], tiny_goldens)
    assert {parameter.device.type for parameter in reference._model.parameters()} == {"meta"}


def test_of_other_positions_and_types(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_model(dtype="bfloat16", max_shard_size="20KB", attention_bias=True)
    asked = [Question([1, 9]), Question([5, 6, 7, 8], offset=60)]
    expected = reference_greedy(path, asked, 6)
    monkeypatch.setattr(source_model, "LOADED", 0)
    same(reference_greedy(path, asked, 6), expected)


def doubled(path: Path, name: str) -> Checkpoint:
    """The checkpoint with one weight held at twice its values."""
    checkpoint = read_checkpoint(path)
    array = np.frombuffer(checkpoint.tensors["model.layers.1.mlp.up_proj.weight"].data, np.float32).reshape(48, 32)
    changed = WeightTensor(name, (48, 32), ir.DataType.FLOAT, lambda part: 2 * array[part])
    return replace(checkpoint, changed={name: changed})


def test_changed_weights_are_asked(tiny: Path, tiny_goldens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = doubled(tiny, "model.layers.1.mlp.up_proj.weight")
    loaded = reference_greedy(checkpoint, PROMPTS, 3)
    assert np.abs(loaded[2].logits - tiny_goldens[2].logits[: len(loaded[2].logits)]).max() > 0.01
    monkeypatch.setattr(source_model, "LOADED", 0)
    same(reference_greedy(checkpoint, PROMPTS, 3), loaded)


@pytest.mark.parametrize("limit", [source_model.LOADED, 0], ids=["loaded", "streamed"])
def test_a_changed_part_of_a_joined_parameter_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """One expert of Mixtral's at twice its values: as transformers loads a checkpoint that holds it so."""
    safetensors = optional("safetensors.numpy", "torch")
    FAMILIES["mixtral"](tmp_path / "a")
    tensors = safetensors.load_file(tmp_path / "a" / "model.safetensors")
    name = next(name for name in tensors if "experts.1." in name)
    plain = reference_greedy(tmp_path / "a", PROMPTS, 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    doubled = 2 * tensors[name]
    safetensors.save_file(tensors | {name: doubled}, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    expected = reference_greedy(tmp_path / "b", PROMPTS, 3)
    assert np.abs(expected[2].logits[0] - plain[2].logits[0]).max() > 1e-4
    checkpoint = read_checkpoint(tmp_path / "a")
    changed = WeightTensor(name, doubled.shape, ir.DataType.FLOAT, lambda part: doubled[part])
    monkeypatch.setattr(source_model, "LOADED", limit)
    same(reference_greedy(replace(checkpoint, changed={name: changed}), PROMPTS, 3), expected)


def test_a_changed_weight_that_the_model_lacks(tiny: Path) -> None:
    with pytest.raises(ProofError, match=r"model\.other: is stored in another form, but is no parameter"):
        Reference(doubled(tiny, "model.other"))


def test_a_large_portable_form_is_proved_in_place_with_16_steps(
    tiny: Path, tmp_path: Path, tiny_export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genai_bundle.builder.exporters import transformers as exporter
    from genai_bundle.builder.from_checkpoint import build_checkpoint

    loads, asked = [], []
    load, check = prove.load, prove.check_decoder

    def loading(*args: Any, **options: Any) -> Any:
        loads.append((options["variant"], options["low_memory"]))
        return load(*args, **options)

    def checking(decoder: Any, goldens: Any, turn: Any) -> float:
        asked.append([len(golden.tokens) for golden in goldens])
        return check(decoder, goldens, turn)

    copy = replace(tiny_export, graphs={name: model.clone() for name, model in tiny_export.graphs.items()})
    monkeypatch.setattr(prove, "LARGE", 0)
    monkeypatch.setattr(prove, "load", loading)
    monkeypatch.setattr(prove, "check_decoder", checking)
    monkeypatch.setattr(exporter, "export_decoder", lambda _: copy)
    build_checkpoint(tiny, tmp_path / "x.genai")
    assert ("portable", True) in loads
    assert asked[0] == [17, 2]
    assert asked[1][0] == 24
