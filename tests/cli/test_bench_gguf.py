# SPDX-License-Identifier: Apache-2.0
"""A bundle's weights as llama.cpp reads them: the same tokens, and the same numbers but for rounded scales."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import genai_runner
from conftest import optional
from genai_bundle.bench import Side
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import UsageError

SAMPLE_CONFIG = {
    "model_type": "llama", "hidden_act": "silu", "vocab_size": 1024, "hidden_size": 96, "intermediate_size": 256,
    "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip
"""What examples/make_tiny_stories.py trains."""


@pytest.mark.peers
def test_llama_cpp_gives_our_tokens(sample: Path, tmp_path: Path) -> None:
    optional("xllamacpp", "peers")
    from genai_bundle.bench.peers import llama_cpp

    with genai_runner.load(sample, precision="exact") as pipe:
        config = SAMPLE_CONFIG | {"vocab_size": pipe.generator("Once", max_tokens=1).get_logits().size}
        decoder = pipe.generator("Once upon a time", temperature=0, max_tokens=24, ignore_eos=True)
        ids = list(decoder.tokens)
        ours = [decoder.generate_next_token() for _ in range(24)]
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = llama_cpp.prepare(sample, tmp_path / "gguf", tmp_path)
    engine = llama_cpp.open_engine(Side("llama.cpp", "", file, "exact", 1, room=100))
    assert engine.generate(ids, 24)["tokens"] == ours
    assert len(engine.run(ids, 5, 1).steps) == 5


@pytest.mark.peers
@pytest.mark.parametrize(("bits", "block", "zeros", "kind"), [
    (4, 32, None, "Q4_1"), (4, 64, None, "Q4_1"), (4, 32, 8, "Q4_0"), (8, 32, 128, "Q8_0"),
])  # fmt: skip
def test_blocks_keep_their_numbers(bits: int, block: int, zeros: int | None, kind: str) -> None:
    gguf = optional("gguf", "peers")
    fake, expected = quantized(bits, block, zeros)
    data, found = reader(fake).tensor("w", None)
    assert found == kind
    numbers = gguf.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert np.allclose(numbers, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("bits", "block", "zeros"), [(8, 32, 3), (4, 16, 8)])
def test_blocks_without_a_form_are_named(bits: int, block: int, zeros: int) -> None:
    fake, _ = quantized(bits, block, zeros)
    with pytest.raises(UsageError, match="no form for the weight 'w'"):
        reader(fake).tensor("w", None)


def reader(bundle: Any) -> Any:
    from genai_bundle.bench.gguf_file import Reader

    return Reader(bundle)


def quantized(bits: int, block: int, zero: int | None) -> tuple[Any, Any]:
    """A stand-in for a bundle with one weight `w` of 6 rows of 128, and what ONNX's own evaluator makes of it."""
    rng = np.random.default_rng(7)
    rows, width, kind = 6, 128, onnx.TensorProto.UINT4 if bits == 4 else onnx.TensorProto.UINT8
    values = rng.integers(0, 2**bits, (rows, width), np.uint8)
    points = (
        rng.integers(0, 2**bits, (rows, width // block), np.uint8)
        if zero is None
        else np.full((rows, width // block), zero, np.uint8)
    )
    scales = rng.uniform(0.01, 0.1, points.shape).astype(np.float32)
    tensors = [
        stored("w.quantized", values, kind), stored("w.zeros", points, kind),
        numpy_helper.from_array(scales, "w.scales"),
    ]  # fmt: skip
    node = helper.make_node("DequantizeLinear", ["w.quantized", "w.scales", "w.zeros"], ["y"], axis=1, block_size=block)
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [rows, width])
    graph = helper.make_graph([node], "one", [], [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    entry = SimpleNamespace(file="decoder.onnx")
    fake = SimpleNamespace(manifest=SimpleNamespace(graphs={"decoder": entry}), graph=lambda file: model)
    return fake, ReferenceEvaluator(model).run(None, {})[0]


def stored(name: str, values: Any, kind: int) -> onnx.TensorProto:
    flat = values.reshape(-1)
    raw = flat if kind == onnx.TensorProto.UINT8 else flat[::2] | flat[1::2] << 4
    return onnx.TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=raw.tobytes())


def test_another_architecture_is_refused_by_name(sample: Path, tmp_path: Path) -> None:
    from genai_bundle.bench.gguf_file import write_gguf

    config = {"model_type": "gemma3", "hidden_act": "gelu", "rope_parameters": {"rope_type": "yarn"}}
    words = r"'gemma3' and hidden_act 'gelu' and rope_type 'yarn'"
    with open_bundle(sample) as opened, pytest.raises(UsageError, match=words):
        write_gguf(opened, config, tmp_path / "x.gguf")
