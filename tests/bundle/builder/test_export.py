# SPDX-License-Identifier: Apache-2.0
"""The portable graph: its ports, its operators, its weights, and that it computes what the model computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytestmark = pytest.mark.torch

from genai_bundle.builder.checkpoint import read_checkpoint  # noqa: E402
from genai_bundle.builder.parity import Decoder, check_decoder, kv_caches  # noqa: E402
from genai_bundle.errors import SourceError  # noqa: E402

MakeModel = Callable[..., Path]


def proto(model: Any) -> onnx.ModelProto:

    found: onnx.ModelProto = ir.to_proto(model)
    return found


def export(path: Path) -> Any:
    from genai_bundle.builder.exporters.transformers import export_decoder

    return export_decoder(read_checkpoint(path))


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_ports_are_those_that_a_manifest_names(tiny_export: Any) -> None:
    graph = proto(tiny_export.graphs["decoder"]).graph
    cache = {f"{layer}.{half}" for layer in (0, 1) for half in ("key", "value")}
    assert {value.name: dims(value) for value in graph.input} == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "total"],
        "position_ids": ["batch", "sequence"],
        "num_logits": [],
    } | {f"past_key_values.{name}": ["batch", 2, "past", 8] for name in cache}
    assert {value.name: dims(value) for value in graph.output} == {"logits": ["batch", "num_logits", 260]} | {
        f"present.{name}": ["batch", 2, "total", 8] for name in cache
    }


def test_standard_operators_only_and_valid(tiny_export: Any) -> None:
    model = proto(tiny_export.graphs["decoder"])
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)]
    assert model.ir_version <= 12
    operators = {node.op_type for node in model.graph.node}
    assert {"Attention", "RMSNormalization", "RotaryEmbedding"} <= operators
    assert "GatherND" not in operators


def test_says_nothing_about_the_machine(tiny_export: Any) -> None:
    model = proto(tiny_export.graphs["decoder"])
    assert not model.metadata_props
    assert not model.producer_version
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "model.layers.1.mlp.down_proj/MatMul" in names


def test_weights_are_the_checkpoints_own(tiny: Path, tiny_export: Any) -> None:
    """Every tensor once, under its name, in its layout; the tied table serves both ends."""
    tensors = read_checkpoint(tiny).tensors
    initializers = tiny_export.graphs["decoder"].graph.initializers
    assert tensors.keys() <= initializers.keys()
    for name, tensor in tensors.items():
        assert initializers[name].const_value.tobytes() == bytes(tensor.data)
    assert len(list(initializers["model.embed_tokens.weight"].uses())) == 2
    rest = [value.const_value for name, value in initializers.items() if name not in tensors]
    assert sum(tensor.nbytes for tensor in rest) < 1024


def test_computes_what_the_model_computes(tiny_export: Any, tiny_goldens: Any, session_run: Any) -> None:
    run, ports = session_run(tiny_export.graphs["decoder"])
    assert check_decoder(Decoder(run, ports, kv_caches([(2, 8)] * 2), None), tiny_goldens) < 1e-4


def test_the_last_logits(tiny_export: Any, tiny_goldens: Any, session_run: Any) -> None:
    run, ports = session_run(tiny_export.graphs["decoder"])
    decoder = Decoder(run, ports, kv_caches([(2, 8)] * 2), None)
    golden = tiny_goldens[2]
    for asked, given in ((1, 1), (3, 3), (0, 19), (100, 19)):
        decoder.reset(1)
        logits = decoder.step(golden.ids, 0, asked)
        assert logits.shape == (given, 260)
        np.testing.assert_allclose(logits, golden.logits[19 - given : 19], atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
            id="every-head-its-own, biases, untied",
        ),
        pytest.param(
            {
                "dtype": "bfloat16",
                "max_shard_size": "40KB",
                "num_key_value_heads": 1,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            },
            id="one key head, scaled rotation, bfloat16 in shards",
        ),
    ],
)
def test_other_shapes_of_the_family(make_model: MakeModel, session_run: Any, config: dict[str, Any]) -> None:
    from genai_bundle.builder.reference import reference_greedy
    from genai_bundle.builder.variants.ort_gqa import make_variant

    path = make_model(**config)
    goldens = reference_greedy(path, [[1, 9], list(range(20, 60))], 18)
    portable = export(path).graphs["decoder"]
    caches = kv_caches([(config["num_key_value_heads"], 8)] * 2)
    run, ports = session_run(portable)
    assert check_decoder(Decoder(run, ports, caches, None), goldens) < 1e-4
    variant, reason = make_variant(portable)
    assert reason == ""
    run, ports = session_run(variant)
    assert check_decoder(Decoder(run, ports, caches, 70), goldens) < 1e-4


def change_config(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint folder, by links, with another config."""
    for file in source.iterdir():
        if file.name != "config.json":
            (target / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | changes
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def test_a_missing_tensor_is_named(tiny: Path, tmp_path: Path) -> None:
    path = change_config(tiny, tmp_path, num_hidden_layers=3)
    with pytest.raises(
        SourceError, match=r"model\.safetensors: the model needs the tensor 'model\.layers\.2\."
    ) as caught:
        export(path)
    assert "lacks" in str(caught.value)


def test_a_tensor_of_another_shape_is_named(tiny: Path, tmp_path: Path) -> None:
    path = change_config(tiny, tmp_path, intermediate_size=64)
    with pytest.raises(SourceError, match=r"model\.layers\.0\.mlp\.\w+\.weight: has the shape .* describes"):
        export(path)


def test_an_unknown_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = change_config(tiny, tmp_path, model_type="no-such-model")
    with pytest.raises(SourceError, match="transformers cannot make this model"):
        export(path)
