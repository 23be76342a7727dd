# SPDX-License-Identifier: Apache-2.0
"""The tensors of a GGUF file under the names and in the layout of transformers, made when somebody reads them.

Names go through gguf's own table, from the model's parameters to the file: a parameter without a tensor and a tensor
without a parameter are both errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.builder.prequantised import KeptBlocks
from genai_bundle.builder.safetensors import StoredTensor
from genai_bundle.builder.tensors import DerivedTensor
from genai_bundle.errors import SourceError
from genai_bundle.importers.gguf.blocks import kept_blocks
from genai_bundle.importers.gguf.config import LAYOUTS, Layout
from genai_bundle.importers.gguf.file import GgufFile, GgufTensor

SPENT = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the config has taken up."""

STORED = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
"""Forms that keep their type; all others are decoded to float32."""


def map_tensors(file: GgufFile, config: Mapping[str, Any]) -> tuple[dict[str, StoredTensor], dict[str, KeptBlocks]]:
    """Every parameter of the model that `config` describes, by transformers' name, and the blocks of those that have.

    Raises:
        SourceError: names the tensors that are missing, left over or of another shape.
    """
    layout = LAYOUTS[file.architecture]
    found: dict[str, StoredTensor] = {}
    kept: dict[str, KeptBlocks] = {}
    used: set[str] = set()
    for name, shape in parameter_shapes(config).items():
        sources = [file.tensors[source] for source in _sources(file, name, config) if source in file.tensors]
        if not sources:
            if name == "lm_head.weight" and config["tie_word_embeddings"]:
                continue
            raise SourceError(f"lacks the tensor for '{name}'", where=file.path.name)
        used |= {source.name for source in sources}
        order = _order(name, shape[0], config) if layout.interleaved else None
        found[name] = _derive(file, name, shape, sources, order, layout)
        blocks = kept_blocks(sources, order)
        if blocks is not None:
            kept[name] = blocks
    left = sorted(file.tensors.keys() - used - set(SPENT))
    if left:
        raise SourceError(
            f"holds tensors that the model does not have: {', '.join(left[:5])}", where=file.path.name,
            hint="Build from the original checkpoint",
        )  # fmt: skip
    return found, kept


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The model's parameters by name. Nothing is allocated."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _sources(file: GgufFile, name: str, config: Mapping[str, Any]) -> Sequence[str]:
    """The names in the file of what makes up the parameter `name`: one tensor, or gate and up of stacked experts."""
    if name.endswith("experts.gate_up_proj"):
        block = name.split(".")[2]
        return [f"blk.{block}.ffn_gate_exps.weight", f"blk.{block}.ffn_up_exps.weight"]
    table = _names(file.architecture, config["num_hidden_layers"])
    stem, dot, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        stem, dot, suffix = name, ".", "weight"
    found = table.get_name(stem)
    return [] if found is None else [found + dot + suffix]


@cache
def _names(architecture: str, layers: int) -> Any:
    """gguf's table from transformers' names to the file's."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    return get_tensor_name_map(next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), layers)


def _derive(
    file: GgufFile,
    name: str,
    shape: tuple[int, ...],
    sources: Sequence[GgufTensor],
    order: NDArray[np.intp] | None,
    layout: Layout,
) -> StoredTensor:
    first = sources[0]
    where = f"{file.path.name}: {first.name}"
    axis = 1 if len(sources) > 1 else 0
    joined = tuple(sum(s.shape[i] for s in sources) if i == axis else n for i, n in enumerate(first.shape))
    if len({source.kind for source in sources}) > 1:
        raise SourceError("differs in form from the tensor that it is joined with", where=where)
    if (joined if len(sources) > 1 else first.shape) != shape:
        raise SourceError(f"has the shape {list(first.shape)}, but the metadata describes {list(shape)}", where=where)
    offset = layout.norm_offset if name.endswith("norm.weight") else 0.0

    def rows(part: Any) -> NDArray[Any]:
        arrays = [_rows(source, order, part) for source in sources]
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)
        return array.astype(np.float32) - np.float32(offset) if offset else array

    dtype = "F32" if offset else STORED.get(first.kind, "F32")
    return DerivedTensor(name, file.path.name, dtype, shape, rows)


def _rows(tensor: GgufTensor, order: NDArray[np.intp] | None, part: Any) -> NDArray[Any]:
    """`part` along the first axis, in the order of transformers."""
    if len(tensor.shape) == 1:
        whole: NDArray[Any] = tensor.values().reshape(-1)
        return np.asarray(whole[part] if order is None else whole[order[part]])
    if len(tensor.shape) == 2:
        return tensor.values(part if order is None else order[part])
    inner = tensor.shape[1]
    picked = np.arange(tensor.shape[0])[part]
    stacked: NDArray[Any] = tensor.values((picked[:, None] * inner + np.arange(inner)).reshape(-1))
    return stacked.reshape(len(picked), *tensor.shape[1:])


def _order(name: str, rows: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
    """Where transformers' rows of a query or key projection stand: llama.cpp turns neighbours, transformers halves."""
    if ".q_proj." in name:
        heads = config["num_attention_heads"]
    elif ".k_proj." in name:
        heads = config["num_key_value_heads"]
    else:
        return None
    order: NDArray[np.intp] = np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    return order
