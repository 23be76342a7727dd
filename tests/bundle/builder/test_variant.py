# SPDX-License-Identifier: Apache-2.0
"""The ONNX Runtime variant: GroupQueryAttention where the pattern is proved, and nothing where it is not."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytestmark = pytest.mark.torch

from genai_bundle.builder.parity import Decoder, check_decoder, kv_caches  # noqa: E402
from genai_bundle.builder.variants.ort_gqa import make_variant  # noqa: E402
from genai_bundle.errors import ProofError  # noqa: E402


@pytest.fixture
def portable(tiny_export: Any) -> Any:
    """A copy that a test may change."""
    return tiny_export.graphs["decoder"].clone()


@pytest.fixture
def variant(tiny_export: Any) -> Any:
    model, reason = make_variant(tiny_export.graphs["decoder"])
    assert reason == ""
    return model


def node(model: Any, op_type: str, index: int = 0) -> Any:
    return [node for node in model.graph if node.op_type == op_type][index]


def test_ports(variant: Any) -> None:
    inputs = {value.name: (value.dtype.name, [str(dim) for dim in value.shape]) for value in variant.graph.inputs}
    assert "attention_mask" not in inputs
    assert inputs["seqlens_k"] == ("INT32", ["batch"])
    assert inputs["total_sequence_length"] == ("INT32", [])
    assert inputs["past_key_values.1.value"] == ("FLOAT", ["batch", "2", "capacity", "8"])
    outputs = {value.name: [str(dim) for dim in value.shape] for value in variant.graph.outputs}
    assert outputs["present.1.value"] == ["batch", "2", "capacity", "8"]
    assert outputs["logits"] == ["batch", "num_logits", "260"]


def test_nothing_of_the_mask_nor_of_a_transposition_is_left(variant: Any) -> None:
    operators = Counter(node.op_type for node in variant.graph)
    assert operators["GroupQueryAttention"] == 2
    assert operators["FusedMatMul"] == 15
    assert operators["SkipSimplifiedLayerNormalization"] == 4
    assert not {"Attention", "Where", "Expand", "Range", "Transpose", "MatMul"} & operators.keys()
    names = [value.name for node in variant.graph for value in node.outputs if value.name]
    assert len(set(names)) == len(names)


def test_the_portable_graph_stays_as_it_was(tiny_export: Any) -> None:
    before = ir.to_proto(tiny_export.graphs["decoder"]).SerializeToString(deterministic=True)
    make_variant(tiny_export.graphs["decoder"])
    assert ir.to_proto(tiny_export.graphs["decoder"]).SerializeToString(deterministic=True) == before


def test_weights_are_the_very_same(tiny_export: Any, variant: Any) -> None:
    portable = tiny_export.graphs["decoder"].graph.initializers
    for name, value in variant.graph.initializers.items():
        if name in portable:
            assert value.const_value is portable[name].const_value
    large = {name for name, value in portable.items() if value.const_value.nbytes >= 1024}
    assert large <= variant.graph.initializers.keys()


@pytest.mark.parametrize("capacity", [40, 128])
def test_computes_what_the_model_computes(variant: Any, tiny_goldens: Any, session_run: Any, capacity: int) -> None:
    """In buffers of any length that holds the tokens; rows of different length padded on the right."""
    run, ports = session_run(variant)
    assert check_decoder(Decoder(run, ports, kv_caches([(2, 8)] * 2), capacity), tiny_goldens) < 1e-4


def test_a_wrong_scale_is_found_and_located(variant: Any, tiny_goldens: Any, session_run: Any) -> None:
    attention = node(variant, "GroupQueryAttention", 0)
    attention.attributes["scale"] = ir.AttrFloat32("scale", 0.5)
    run, ports = session_run(variant)
    with pytest.raises(
        ProofError, match=r"prefill.* differs from the model by .*first cache that differs is present\.1\.key"
    ):
        check_decoder(Decoder(run, ports, kv_caches([(2, 8)] * 2), 64), tiny_goldens)


def also(graph: Any, nodes: Any) -> None:
    """Let the mask demand, beside causal order, what the last of `nodes` says."""
    causal = next(node for node in graph if node.op_type == "LessOrEqual")
    both = ir.node("And", [causal.outputs[0], nodes[-1].outputs[0]], name="both")
    reader = next(use.node for use in causal.outputs[0].uses() if use.node is not both)
    graph.insert_before(reader, [*nodes, both])
    reader.replace_input_with(list(reader.inputs).index(causal.outputs[0]), both.outputs[0])


def windowed(portable: Any, length: int) -> None:
    causal = node(portable, "LessOrEqual")
    size = ir.tensor(np.array(length), name="window.size")
    value = ir.Value(name="window.size", shape=size.shape, type=ir.TensorType(size.dtype), const_value=size)
    portable.graph.register_initializer(value)
    begin = ir.node("Sub", [causal.inputs[1], value], name="begin")
    also(portable.graph, [begin, ir.node("Greater", [causal.inputs[0], begin.outputs[0]], name="window")])


def test_a_window_becomes_the_operators(tiny: Path, portable: Any, session_run: Any, tmp_path: Path) -> None:
    """Mistral is llama with a window, under the same names."""
    from genai_bundle.builder.reference import reference_greedy

    shutil.copytree(tiny, tmp_path / "window")
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    changes = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 7}
    (tmp_path / "window" / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    goldens = reference_greedy(tmp_path / "window", [[1, 40], list(range(30, 49))], 18)
    windowed(portable, 7)
    model, reason = make_variant(portable)
    assert reason == ""
    run, ports = session_run(model)
    assert check_decoder(Decoder(run, ports, kv_caches([(2, 8)] * 2), 64), goldens) < 1e-4
    node(model, "GroupQueryAttention").attributes["local_window_size"] = ir.AttrInt64("local_window_size", 8)
    run, ports = session_run(model)
    with pytest.raises(ProofError):
        check_decoder(Decoder(run, ports, kv_caches([(2, 8)] * 2), 64), goldens)


def test_a_mask_with_more_in_it_has_no_variant(portable: Any) -> None:
    """The operator would ignore it without a word."""
    causal = node(portable, "LessOrEqual")
    also(portable.graph, [ir.node("GreaterOrEqual", list(causal.inputs), name="more")])
    assert make_variant(portable) == (
        None,
        "model.layers.0.self_attn/Attention: its mask is more than causal order, a window and padding",
    )


def test_a_mask_that_lets_padding_pass_has_no_variant(portable: Any) -> None:
    padded = next(node for node in portable.graph if node.op_type == "And" and node.name == "model/And.1")
    padded.replace_input_with(1, padded.inputs[0])
    model, reason = make_variant(portable)
    assert model is None
    assert "its mask is more" in reason


def test_a_cache_joined_otherwise_has_no_variant(portable: Any) -> None:
    join = next(node for node in portable.graph if node.outputs[0].name == "present.1.key")
    join.replace_input_with(0, join.inputs[1])
    model, reason = make_variant(portable)
    assert model is None
    assert reason == "model.layers.1.self_attn/Attention: its key or value is not a cache joined with new entries"


def test_a_length_of_the_cache_used_elsewhere_has_no_variant(portable: Any) -> None:
    """In a shared buffer that length is the capacity."""
    past = next(value for value in portable.graph.inputs if value.name == "past_key_values.0.key")
    shape = ir.node("Shape", [past], {"start": 2, "end": 3}, name="length")
    logits = portable.graph.outputs[0]
    extra = ir.node("Cast", [shape.outputs[0]], {"to": 1}, name="cast")
    changed = ir.node("Add", [logits, extra.outputs[0]], name="add")
    portable.graph.extend([shape, extra, changed])
    portable.graph.outputs[0] = changed.outputs[0]
    assert make_variant(portable) == (None, "past_key_values.0.key is used by length")


def test_no_attention_no_variant() -> None:
    value = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    relu = ir.node("Relu", [value])
    graph = ir.Graph([value], relu.outputs, nodes=[relu], opset_imports={"": 23})
    assert make_variant(ir.Model(graph, ir_version=10))[0] is None


def test_a_graph_without_a_fold_for_its_result_keeps_it(portable: Any, tiny_goldens: Any, session_run: Any) -> None:
    """Attention's result used in its own layout: a reshape and a transposition give it back."""
    where = node(portable, "Where")
    zero = ir.tensor(np.zeros((), np.float32), name="zero")
    initializer = ir.Value(name="zero", shape=zero.shape, type=ir.TensorType(zero.dtype), const_value=zero)
    portable.graph.register_initializer(initializer)
    added = ir.node("Add", [where.outputs[0], initializer], name="added")
    reader = next(use.node for use in where.outputs[0].uses())
    portable.graph.insert_before(reader, added)
    reader.replace_input_with(0, added.outputs[0])
    model, reason = make_variant(portable)
    assert reason == ""
    run, ports = session_run(model)
    assert check_decoder(Decoder(run, ports, kv_caches([(2, 8)] * 2), 64), tiny_goldens) < 1e-4
