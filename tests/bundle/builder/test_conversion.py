# SPDX-License-Identifier: Apache-2.0
"""Every weight is what transformers itself loads from the same folder, bit by bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from conftest import optional
from families import FAMILIES

optional("transformers", "torch")

from genai_bundle.builder.checkpoint import read_checkpoint  # noqa: E402
from genai_bundle.builder.exporters.conversion import convert  # noqa: E402
from genai_bundle.builder.exporters.skeleton import construct  # noqa: E402
from genai_bundle.builder.exporters.tracing import dropped  # noqa: E402
from genai_bundle.builder.safetensors import read_safetensors  # noqa: E402
from genai_bundle.errors import SourceError  # noqa: E402

pytestmark = pytest.mark.torch


def loaded(folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict())


def check(folder: Path) -> list[str]:
    held, unused = convert(construct(folder), read_safetensors(folder / "model.safetensors"))
    for name, tensor in loaded(folder).items():
        if name in held:  # a tied name is its partner's matter
            assert held[name].shape == tuple(tensor.shape), name
            np.testing.assert_array_equal(held[name].rows(slice(None)), tensor.numpy(), err_msg=name)
        else:
            assert name == "lm_head.weight"
    return unused


@pytest.mark.parametrize("family", ["mixtral", "gpt-neox", "gpt-oss", "deepseek-v3", "olmoe"])
def test_weights_are_those_that_transformers_loads(family: str, tmp_path: Path) -> None:
    FAMILIES[family](tmp_path)
    assert check(tmp_path) == []


def test_names_without_the_models_prefix_are_found(tmp_path: Path) -> None:
    """GPT-2's own checkpoint calls a tensor `h.0.ln_1.weight`, and stores its causal masks."""
    from safetensors.numpy import load_file, save_file

    FAMILIES["gpt2"](tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare | {"h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32)}, tmp_path / "model.safetensors")
    assert check(tmp_path) == ["h.0.attn.bias"]


def test_parts_of_different_shape_are_refused_with_their_names(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    FAMILIES["mixtral"](tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    wrong = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    tensors[wrong] = np.zeros((32, 47), np.float32)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    save_file(tensors, tmp_path / "b" / "model.safetensors")
    with pytest.raises(SourceError, match=r"model.layers.1.mlp.experts.down_proj.*different shapes"):
        convert(construct(tmp_path / "b"), read_safetensors(tmp_path / "b" / "model.safetensors"))


def test_tensors_without_a_part_in_the_graph_are_named(tmp_path: Path) -> None:
    """A causal mask of old, and what the graph does not use; a head that is tied to the table is no loss."""
    from safetensors.numpy import load_file, save_file

    FAMILIES["gpt2"](tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    more = {"h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32), "lm_head.weight": tensors["transformer.wte.weight"]}
    save_file(tensors | more, tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path)
    names = tensors.keys() - {"transformer.h.1.ln_2.bias"}
    values = [ir.Value(name=name, const_value=ir.tensor([0.0], name=name)) for name in names]
    graph = ir.Model(ir.Graph([], [], nodes=[], initializers=values), ir_version=10)
    model = construct(tmp_path)
    assert dropped(model, checkpoint, graph) == ["h.0.attn.bias", "transformer.h.1.ln_2.bias"]
