# SPDX-License-Identifier: Apache-2.0
"""A bundle's weights as a GGUF file, for llama.cpp: the same numbers, but for scales, which its blocks hold in float16.

Decoders of Llama's form only, whose initializers keep the names of the checkpoint; its config.json says the rest.
Ids go in and out, so the vocabulary is one of placeholders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from genai_bundle.bundle import Bundle
from genai_bundle.errors import UsageError

FORMS = {"llama", "mistral"}
"""Values of `model_type` that llama.cpp runs as `llama` with nothing that its file would have to say besides."""

BLOCK = 32
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
LAYER = ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
         "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip

Array = NDArray[Any]


def write_gguf(bundle: Bundle, config: dict[str, Any], path: Path) -> None:
    """Write the file. UsageError for what is not of Llama's form, or in blocks that a GGUF file cannot hold."""
    _check(config)
    import gguf

    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, config, heads, groups)
    read = Reader(bundle)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    wanted = [EMBEDDING, NORM, *(f"model.layers.{n}.{part}.weight" for n in range(layers) for part in LAYER)]
    for name in wanted if config.get("tie_word_embeddings") else [*wanted, HEAD]:
        turn = {"q_proj": heads, "k_proj": groups}.get(name.split(".")[-2])
        data, kind = read.tensor(name, _interleaved(turn) if turn else None)
        writer.add_tensor(names.get_name(name, (".weight",)) or name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check(config: dict[str, Any]) -> None:
    form = config.get("model_type")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    odd = {
        f"model_type {form!r}": form not in FORMS,
        f"hidden_act {config.get('hidden_act')!r}": config.get("hidden_act") != "silu",
        "biases": bool(config.get("attention_bias") or config.get("mlp_bias")),
        "a sliding window": config.get("sliding_window") is not None,
        f"rope_type {rope.get('rope_type')!r}": rope.get("rope_type", "default") != "default",
    }
    if found := [what for what, is_so in odd.items() if is_so]:
        raise UsageError(f"llama.cpp is compared on decoders of Llama's form, and this one has {' and '.join(found)}")


def _describe(writer: Any, config: dict[str, Any], heads: int, groups: int) -> None:
    import gguf

    size, count = config.get("head_dim") or config["hidden_size"] // heads, config["vocab_size"]
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(count)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{number}" for number in range(count)])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([gguf.TokenType.NORMAL] * count)
    writer.add_add_bos_token(False)


def _interleaved(heads: int) -> Callable[[Array], Array]:
    """Rows of queries and keys as llama.cpp turns them: pairs side by side, not half a head apart."""
    return lambda rows: rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


class Reader:
    """Weights of the portable graph by the checkpoint's names."""

    def __init__(self, bundle: Bundle) -> None:
        [entry] = bundle.manifest.graphs.values()
        self._bundle = bundle
        self._tensors = {one.name: one for one in bundle.graph(entry.file).graph.initializer}

    def tensor(self, name: str, order: Callable[[Array], Array] | None) -> tuple[Array, str]:
        """The data as a GGUF file has it, and the name of its type there."""
        if name in self._tensors:
            kinds = {onnx.TensorProto.FLOAT: (np.float32, "F32"), onnx.TensorProto.FLOAT16: (np.float16, "F16")}
            tensor = self._tensors[name]
            if tensor.data_type not in kinds:
                raise _cannot(name, "its type")
            dtype, kind = kinds[tensor.data_type]
            rows: Array = self._bytes(name).view(dtype).reshape(tensor.dims)
            return np.ascontiguousarray(order(rows) if order else rows), kind
        data, kind = self._blocks(name)
        return (np.ascontiguousarray(order(data)) if order else data), kind

    def _blocks(self, name: str) -> tuple[Array, str]:
        """Rows of blocks of 32: a float16 scale, a minimum where it is not implied, and the elements."""
        quantized = self._tensors.get(f"{name}.quantized")
        if quantized is None:
            raise UsageError(f"llama.cpp needs the weight {name!r}, which the graph does not have by that name")
        rows, width = quantized.dims
        scales: Array = self._bytes(f"{name}.scales").view(np.float32).reshape(rows, -1, 1)
        block = width // scales.shape[1]
        if block % BLOCK:
            raise _cannot(name, f"its blocks of {block}")
        four = quantized.data_type == onnx.TensorProto.UINT4
        if not four and quantized.data_type != onnx.TensorProto.UINT8:
            raise _cannot(name, "its type")
        values = self._elements(f"{name}.quantized", four).reshape(rows, -1, BLOCK)
        zeros: Array = self._elements(f"{name}.zeros", four)[: scales.size].reshape(scales.shape)
        every = block // BLOCK
        scales, zeros = np.repeat(scales, every, axis=1), np.repeat(zeros, every, axis=1)
        half = scales.astype(np.float16)
        parts, kind = [half.view(np.uint8)], "Q4_0"
        if not four:
            if (zeros != 128).any():
                raise _cannot(name, "8 bits with zero points")
            return np.concatenate([*parts, values ^ np.uint8(128)], axis=-1).reshape(rows, -1), "Q8_0"
        if (zeros != 8).any():
            minimum = (-scales * zeros).astype(np.float16)
            parts, kind = [*parts, minimum.view(np.uint8)], "Q4_1"
        low, high = values[..., : BLOCK // 2], values[..., BLOCK // 2 :]
        return np.concatenate([*parts, low | high << 4], axis=-1).reshape(rows, -1), kind

    def _elements(self, name: str, four: bool) -> NDArray[np.uint8]:
        raw = self._bytes(name)
        return np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1) if four else raw

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        tensor = self._tensors[name]
        if not tensor.external_data:
            return np.frombuffer(tensor.raw_data, np.uint8)
        entry = {item.key: item.value for item in tensor.external_data}
        place, length = int(entry["offset"]), int(entry["length"])
        return np.frombuffer(self._bundle.view(entry["location"])[place : place + length], np.uint8)


def _cannot(name: str, what: str) -> UsageError:
    return UsageError(f"a GGUF file has no form for the weight {name!r}: {what}")


def config_of(checkpoint: Path) -> dict[str, Any]:
    """Its config.json."""
    found: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return found
