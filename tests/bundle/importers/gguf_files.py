# SPDX-License-Identifier: Apache-2.0
"""GGUF files for tests, written by gguf's own writer from small checkpoints as llama.cpp's converter would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def vocabulary(tokenizer: Mapping[str, Any], *, sentencepiece: bool) -> tuple[list[str], list[int]]:
    """Tokens by id and the kind of each, from the content of a tokenizer.json."""
    added = {entry["id"]: entry for entry in tokenizer["added_tokens"]}
    names = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    names |= {index: entry["content"] for index, entry in added.items()}
    tokens = [names.get(index, f"[PAD{index}]") for index in range(max(names) + 1)]

    def kind(index: int, token: str) -> int:
        if index in added:
            unknown = sentencepiece and token == tokenizer["model"].get("unk_token")
            return UNKNOWN if unknown else CONTROL if added[index]["special"] else USER
        if index not in names:
            return UNUSED
        return BYTE if sentencepiece and len(token) == 6 and token.startswith("<0x") else NORMAL

    return tokens, [kind(index, token) for index, token in enumerate(tokens)]


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Mapping[str, Any], split: str | None = None) -> None:
    """`split` is tokenizer.ggml.pre of a byte-level vocabulary; None for sentencepiece."""
    tokens, kinds = vocabulary(tokenizer, sentencepiece=split is None)
    writer.add_tokenizer_model("llama" if split is None else "gpt2")
    writer.add_tokenizer_pre(split or "default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if split is None:
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
    elif tokenizer["model"]["merges"]:
        writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])


def write_gguf(
    target: Path,
    architecture: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Array],
    tokenizer: Mapping[str, Any],
    *,
    form: str = "F32",
    split: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """A model file. `form` is ggml's name for the matrices' form, `more` are keys beside those of every model."""
    writer = gguf.GGUFWriter(target, architecture)
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    write_tokenizer(writer, tokenizer, split)
    for key, value in (more or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    for name, array in _as_written(architecture, config, tensors).items():
        kind = gguf.GGMLQuantizationType[form]
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if array.ndim == 1 or array.shape[-1] % block:
            kind = gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(array.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _as_written(architecture: str, config: Mapping[str, Any], tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Names and values as llama.cpp's convert_hf_to_gguf.py makes them."""
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    found: dict[str, Array] = {}
    for name, array in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            block = name.split(".")[2]
            gate, up = np.split(array, 2, axis=1)
            found |= {f"blk.{block}.ffn_gate_exps.weight": gate, f"blk.{block}.ffn_up_exps.weight": up}
            continue
        plain = name if name.endswith((".weight", ".bias")) else name + ".weight"
        target = table.get_name(plain, (".weight", ".bias"))
        assert target is not None, name
        if architecture == "llama" and ".q_proj." in name:
            array = _paired(array, config["num_attention_heads"])
        if architecture == "llama" and ".k_proj." in name:
            array = _paired(array, config["num_key_value_heads"])
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        found[target] = array
    return found


def _paired(array: Array, heads: int) -> Array:
    """Rows of the two halves of each head beside each other."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def write_checkpoint(folder: Path, target: Path, **options: Any) -> Path:
    """A llama checkpoint folder with one safetensors file, as a GGUF file."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return write_gguf(target, "llama", config, load_file(folder / "model.safetensors"), tokenizer, **options)
