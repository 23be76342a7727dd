# SPDX-License-Identifier: Apache-2.0
"""What is read of an adapter's folder, and what is refused; and the graph that gets ports for it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bundle.builder.conftest import safetensors_bytes
from genai_bundle.builder.adapters.folder import check_base, read_adapter
from genai_bundle.builder.options import BuildOptions
from genai_bundle.builder.safetensors import StoredTensor, read_safetensors
from genai_bundle.errors import SourceError, UsageError

pytestmark = pytest.mark.torch

from genai_bundle.builder.adapters.branches import add_branches  # noqa: E402

MODULE = "model.layers.0.mlp.up"
A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(8, dtype=np.float32).reshape(4, 2)
PREFIX = f"base_model.model.{MODULE}"
TENSORS = {f"{PREFIX}.lora_A.weight": A, f"{PREFIX}.lora_B.weight": B}
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["up"], "bias": "none"}


def write(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(TENSORS if tensors is None else tensors))
    return folder


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / math.sqrt(2)),
        ({"alpha_pattern": {"up": 3}}, 1.5),
        ({"alpha_pattern": {r"layers\.[1-9]\.mlp\.up": 3}}, 4.0),
        ({"alpha_pattern": {"down": 3, r"layers\.0\..*": 1}}, 0.5),
        ({"r": 7, "rank_pattern": {"mlp.up": 2}}, 4.0),
        ({"use_dora": False, "modules_to_save": None, "loftq_config": {}, "a_key_of_tomorrow": None}, 4.0),
    ],
    ids=str,
)
def test_scaling_is_part_of_the_second_matrix(config: dict[str, Any], scaling: float, tmp_path: Path) -> None:
    pair = read_adapter("x", write(tmp_path / "x", **config)).pairs[MODULE]
    np.testing.assert_array_equal(pair.a(), A.T)
    np.testing.assert_allclose(pair.b(), B.T * scaling, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ({"a_key_of_tomorrow": True}, "a_key_of_tomorrow is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base's own weights"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"r": 4}, "the ranks are 2 and 2, and adapter_config.json says 4"),
        ({"rank_pattern": {"up": "2"}}, "rank_pattern is"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_configuration_that_asks_for_more_is_refused(config: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=problem):
        read_adapter("x", write(tmp_path / "x", **config))


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({}, "holds no tensor"),
        ({f"{PREFIX}.lora_A.weight": A}, "lora_A and lora_B come in pairs"),
        ({**TENSORS, f"{PREFIX}.lora_magnitude_vector": A[0]}, r"no low-rank matrix .*"),
        ({**TENSORS, "base_model.model.embed.lora_embedding_A": A}, "no low-rank matrix"),
        ({**TENSORS, f"{PREFIX}.lora_B.weight": B[:, :1]}, "the ranks are 2 and 1"),
        ({**TENSORS, f"{PREFIX}.lora_A.weight": A[..., None]}, r"is F32\[2, 3, 1\]"),
    ],
    ids=["none", "half", "dora", "embedding", "ranks", "convolution"],
)
def test_a_tensor_that_is_no_half_of_a_pair_is_refused(tensors: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=problem) as caught:
        read_adapter("x", write(tmp_path / "x", tensors))
    assert "x/adapter_model.safetensors" in str(caught.value)


def test_a_copy_of_the_bases_weight_has_to_be_the_bases(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    base = {f"{MODULE}.weight": weight, "model.norm.weight": weight[0]}
    path = tmp_path / "base.safetensors"
    path.write_bytes(safetensors_bytes(base))
    stored = read_safetensors(path)
    copy = {**TENSORS, f"{PREFIX}.base_layer.weight": weight}
    check_base(read_adapter("x", write(tmp_path / "x", copy)), stored)
    trained = {**TENSORS, f"{PREFIX}.base_layer.weight": weight + 1}
    with pytest.raises(SourceError, match=rf"has a weight of its own for '{MODULE}'"):
        check_base(read_adapter("x", write(tmp_path / "x", trained)), stored)
    other = {f"{MODULE}.weight": StoredTensor("w", "f", "F32", (5, 3), stored[f"{MODULE}.weight"].data)}
    adapter = read_adapter("x", write(tmp_path / "x"))
    with pytest.raises(SourceError, match=r"changes a matrix of 3 x 4, and the base's .* is one of 3 x 5"):
        check_base(adapter, other)


def test_a_folder_that_lacks_something_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        read_adapter("x", tmp_path / "x")
    folder = write(tmp_path / "x")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(SourceError, match="is a pickle"):
        read_adapter("x", folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(SourceError, match=r"adapter_config\.json is missing"):
        read_adapter("x", folder)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a+b"])
def test_a_name_that_no_member_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be an adapter's name"):
        read_adapter(name, write(tmp_path / "x"))


def test_only_a_checkpoint_can_be_given_adapters(tmp_path: Path) -> None:
    from genai_bundle.builder.build import build

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x", encoding="utf-8")
    with pytest.raises(UsageError, match="--adapter works on checkpoints; this is a recipe"):
        build(recipe, tmp_path / "x.genai", BuildOptions(adapters={"x": write(tmp_path / "x")}))


BODIES = {
    "transposed": ("float[4,3]", "t = Transpose<perm = [1, 0]>({0}) y = MatMul(x, t)"),
    "as it lies": ("float[3,4]", "y = MatMul(x, {0})"),
    "gemm": ("float[3,4]", "y = Gemm(x, {0}, bias)"),
    "turned gemm": ("float[4,3]", "y = Gemm<transB = 1>(x, {0}, bias)"),
    "used twice": ("float[4,3]", "t = Transpose<perm = [1, 0]>({0}) h = MatMul(x, t) v = MatMul(x, t) y = Sub(h, v)"),
}
W = np.arange(12, dtype=np.float32).reshape(4, 3) - 5
BIAS = np.array([1, 2, 3, 4], np.float32)


def graph(kind: str, weight: str) -> Any:
    shape, body = BODIES[kind]
    values = (W if shape == "float[4,3]" else W.T).reshape(-1).tolist()
    text = (
        f'<ir_version: 10, opset_import: ["": 23]> g (float[N,3] x) => (float[N,4] y) '
        f'<{shape} "{weight}" = {{{", ".join(map(str, values))}}}, float[4] bias = {{1.0, 2.0, 3.0, 4.0}}> '
        f"{{ {body.replace('{0}', f'{chr(34)}{weight}{chr(34)}')} }}"
    )
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize("weight", [f"{MODULE}.weight", "layers.0.mlp.up.weight"])
@pytest.mark.parametrize("kind", BODIES)
def test_products_of_every_form_get_a_branch(kind: str, weight: str, tmp_path: Path) -> None:
    """Against NumPy with merged weights; with zeros, the graph as it was. A port keeps its name."""
    from onnx.reference import ReferenceEvaluator

    adapter = read_adapter("x", write(tmp_path / "x"))
    model = graph(kind, weight)
    added = add_branches({"decoder": model}, [adapter])
    assert added.entries == {"x": {"graphs": {"decoder": "adapter-x.decoder.onnx"}}}
    tensors = added.models["x"]["adapter-x.decoder.onnx"].graph
    given = {str(value.name): value.const_value.numpy() for value in tensors.outputs if value.const_value is not None}
    assert {name: array.shape for name, array in given.items()} == {
        f"lora.{MODULE}.a": (3, 2),
        f"lora.{MODULE}.b": (2, 4),
    }
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    evaluator, x = ReferenceEvaluator(proto), np.array([[1, -2, 3], [0, 1, 1]], np.float32)
    zeros = {name: np.zeros_like(array) for name, array in given.items()}
    bias = BIAS if "gemm" in kind else 0
    for feeds, change in ((given, B @ A * 4), (zeros, 0)):
        whole = x @ (W + change).T + bias
        expected = whole * 0 if kind == "used twice" else whole
        np.testing.assert_allclose(evaluator.run(["y"], {"x": x, **feeds})[0], expected, rtol=1e-5)


def test_each_graph_gets_the_tensors_for_its_own_modules(tmp_path: Path) -> None:
    other = "encoder.up"
    both = {**TENSORS, **{name.replace(MODULE, other): array for name, array in TENSORS.items()}}
    wide = read_adapter("wide", write(tmp_path / "wide", both))
    narrow = read_adapter("narrow", write(tmp_path / "narrow"))
    graphs = {"encoder": graph("gemm", f"{other}.weight"), "decoder": graph("gemm", f"{MODULE}.weight")}
    added = add_branches(graphs, [wide, narrow])
    assert added.entries == {
        "wide": {"graphs": {"encoder": "adapter-wide.encoder.onnx", "decoder": "adapter-wide.decoder.onnx"}},
        "narrow": {"graphs": {"decoder": "adapter-narrow.decoder.onnx"}},
    }
    names = {member: [str(v.name) for v in model.graph.outputs] for member, model in added.models["wide"].items()}
    assert names["adapter-wide.encoder.onnx"] == [f"lora.{other}.a", f"lora.{other}.b"]
    assert [str(port.name) for port in graphs["decoder"].graph.inputs] == ["x", f"lora.{MODULE}.a", f"lora.{MODULE}.b"]


def test_a_repository_of_the_hubs_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--pirate"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee", encoding="utf-8")
    (repository / "snapshots").mkdir()
    write(repository / "snapshots" / "c0ffee")
    assert list(read_adapter("pirate", Path("someone/pirate")).pairs) == [MODULE]
    with pytest.raises(UsageError, match="no such repository"):
        read_adapter("pirate", Path("someone/parrot"))


def test_a_weight_that_does_more_than_a_product_is_refused(tmp_path: Path) -> None:
    model = graph("transposed", f"{MODULE}.weight")
    weight = model.graph.initializers[f"{MODULE}.weight"]
    shape = ir.node("Shape", [weight])
    model.graph.append(shape)
    with pytest.raises(SourceError, match="is used by Shape"):
        add_branches({"decoder": model}, [read_adapter("x", write(tmp_path / "x"))])


def test_a_module_that_the_base_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"changes the module 'model\.layers\.0\.mlp\.up'"):
        add_branches({"decoder": graph("gemm", "other.weight")}, [read_adapter("x", write(tmp_path / "x"))])


def test_a_matrix_of_another_shape_is_refused(tmp_path: Path) -> None:
    wide = {**TENSORS, f"{PREFIX}.lora_A.weight": np.zeros((2, 5), np.float32)}
    with pytest.raises(SourceError, match=r"changes a matrix of 4 x 5, and the base's .* is one of 3 x 4"):
        add_branches({"decoder": graph("gemm", f"{MODULE}.weight")}, [read_adapter("x", write(tmp_path / "x", wide))])
