# SPDX-License-Identifier: Apache-2.0
"""A transformers config from a GGUF file's metadata.

Strict: a key of the model's own section that nothing here understands may be one that changes what the model computes.
What llama.cpp does for an architecture and does not write down (rows of q and k interleaved, norms stored as 1 + w) is
in `LAYOUTS`, the only place that knows architectures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.errors import SourceError
from genai_bundle.importers.gguf.file import GgufFile

Json = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How llama.cpp writes one architecture.

    keys: metadata keys beside `COMMON`, and the config's name for each. fixed: what the config says beside the file.
    interleaved: rotary halves of q and k are stored as pairs. norm_offset: what was added to the weights of norms.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    interleaved: bool = False
    norm_offset: float = 0.0


WINDOW = {"attention.sliding_window": "sliding_window"}
LOCAL = {"rope.freq_base_swa": "rope_local_base_freq"}
CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
EXPERTS = {
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}  # fmt: skip

LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout("llama", interleaved=True),
    "qwen2": Layout("qwen2"),
    "qwen3": Layout("qwen3"),
    "qwen3moe": Layout("qwen3_moe", keys=EXPERTS, fixed={"norm_topk_prob": True}),
    "phi3": Layout("phi3", keys=WINDOW),
    "gemma2": Layout("gemma2", keys=WINDOW | CAPS, norm_offset=1.0),
    "gemma3": Layout("gemma3_text", keys=WINDOW | LOCAL, norm_offset=1.0),
}

COMMON = {
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}  # fmt: skip
"""The keys that every layout states, with transformers' names."""

NEUTRAL: Mapping[str, Any] = {"attention.causal": True, "expert_count": 0, "expert_used_count": 0}
"""Keys that change nothing while they have this value."""

ROPE = {"type": "none", "factor": None, "original_context_length": None, "attn_factor": None, "finetuned": None}
"""What is understood below `rope.scaling.`."""


def read_config(file: GgufFile, *, lossy: bool) -> tuple[Json, list[str]]:
    """config.json's content, and the keys that were dropped because `lossy` allows it.

    Raises:
        SourceError: an architecture or a key that is not known here, or keys that contradict each other.
    """
    layout = LAYOUTS.get(file.architecture)
    if layout is None:
        raise SourceError(
            f"general.architecture is {file.architecture!r}, expected one of {', '.join(LAYOUTS)}",
            where=file.path.name, hint="Build from the original checkpoint",
        )  # fmt: skip
    prefix = file.architecture + "."
    own = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    config: Json = {"model_type": layout.model_type, **layout.fixed}
    absent = [prefix + key for key in COMMON if key not in own]
    if absent:
        raise SourceError(f"lacks {', '.join(absent)}", where=file.path.name)
    config |= {name: own.pop(key) for key, name in {**COMMON, **layout.keys}.items() if key in own}
    config["num_key_value_heads"] = own.pop("attention.head_count_kv", config["num_attention_heads"])
    config["vocab_size"] = _rows(file, "token_embd.weight")
    own.pop("vocab_size", None)  # of the vocabulary; the embedding may have more rows
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    config |= _head(file, own, config)
    config |= _rope(file, own, config)
    config |= _biases(file)
    config |= {
        f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items()
    }
    if "query_pre_attn_scalar" not in config and layout.norm_offset:
        # llama.cpp scales by it without a key: 1 / sqrt(hidden / heads) in the largest of each series, by its layers.
        largest = (file.architecture, config["num_hidden_layers"]) in (("gemma2", 46), ("gemma3", 62))
        heads = config["hidden_size"] // config["num_attention_heads"]
        config["query_pre_attn_scalar"] = heads if largest else config["head_dim"]
    strange = [key for key, value in own.items() if key not in NEUTRAL or NEUTRAL[key] != value]
    if strange and not lossy:
        raise SourceError(
            "has keys that are not understood: " + ", ".join(prefix + key for key in sorted(strange)),
            where=file.path.name, hint="Give --allow-lossy to drop them; the proof decides then",
        )  # fmt: skip
    return config, [prefix + key for key in sorted(strange)]


def _rows(file: GgufFile, name: str) -> int:
    if name not in file.tensors:
        raise SourceError(f"the tensor {name} is missing", where=file.path.name)
    return file.tensors[name].shape[0]


def _head(file: GgufFile, own: Json, config: Json) -> Json:
    """head_dim, and how much of it the rotation covers."""
    default = config["hidden_size"] // config["num_attention_heads"]
    turned = own.pop("rope.dimension_count", None)
    size = own.pop("attention.key_length", turned if file.architecture == "llama" and turned else default)
    values = own.pop("attention.value_length", size)
    if values != size:
        raise SourceError(f"attention.value_length is {values}, expected the key_length {size}", where=file.path.name)
    found: Json = {"head_dim": size}
    if turned not in (None, size):
        found["partial_rotary_factor"] = turned / size
    return found


def _biases(file: GgufFile) -> Json:
    """Linear layers with a bias where the config could say either."""
    held = {name.split(".", 2)[2] for name in file.tensors if name.startswith("blk.") and name.endswith(".bias")}
    if file.architecture not in ("llama", "qwen3", "qwen3moe", "gemma2", "gemma3"):
        return {}
    return {"attention_bias": "attn_q.bias" in held} | ({"mlp_bias": True} if "ffn_up.bias" in held else {})


def _rope(file: GgufFile, own: Json, config: Json) -> Json:
    """rope_theta and rope_scaling; llama.cpp writes llama3's scaling as a tensor of factors, and longrope's as two."""
    theta = own.pop("rope.freq_base", 10000.0)
    scaling = {key: own.pop(f"rope.scaling.{key}") for key in ROPE if f"rope.scaling.{key}" in own}
    kind, factor = scaling.get("type", "none"), scaling.get("factor")
    original = scaling.get("original_context_length")
    found: Json = {"rope_theta": theta}
    if "rope_freqs.weight" in file.tensors:
        factors = file.tensors["rope_freqs.weight"].values().reshape(-1).astype(np.float64)
        return found | {"rope_scaling": _llama3(file, factors, theta, config["head_dim"])}
    if "rope_factors_long.weight" in file.tensors:
        both = {
            f"{name}_factor": file.tensors[f"rope_factors_{name}.weight"].values().reshape(-1).tolist()
            for name in ("short", "long")
        }
        longrope = {"rope_type": "longrope", **both}
        return found | {"rope_scaling": longrope, "original_max_position_embeddings": original}
    if kind in ("none", None) or factor in (None, 1.0):
        return found
    if kind == "linear":
        return found | {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn" and original is not None and scaling.get("attn_factor") is None:
        yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        return found | {"rope_scaling": yarn}
    raise SourceError(f"rope.scaling {scaling} is not understood", where=file.path.name)


def _llama3(file: GgufFile, factors: NDArray[np.float64], theta: float, size: int) -> Json:
    """The parameters of llama3's scaling from the factors that it gives.

    Between its two wavelengths 1 / factor is linear in 1 / wavelength, so two frequencies there determine the line. The
    parameters are known up to a common scale, which low_freq_factor = 1 settles.
    """
    where = f"{file.path.name}: rope_freqs.weight"
    waves = 2 * math.pi * theta ** (np.arange(0, size, 2) / size)
    largest = float(factors.max())
    between = (factors > 1 + 1e-4) & (factors < largest * (1 - 1e-4))
    if len(factors) == len(waves) and between.sum() >= 2:
        smooth = (1 / factors - 1 / largest) / (1 - 1 / largest)
        slope, offset = np.polyfit(1 / waves[between], smooth[between], 1)
        if slope > 0 > offset:
            found = {
                "rope_type": "llama3",
                "factor": round(largest, 4),
                "low_freq_factor": 1.0,
                "high_freq_factor": round(1 - 1 / offset, 3),
                "original_max_position_embeddings": round(-slope / offset),
            }
            if np.allclose(_llama3_factors(found, waves), factors, rtol=1e-4):
                return found
    raise SourceError(
        "does not hold the factors of llama3's rope scaling", where=where, hint="Build from the original checkpoint"
    )


def _llama3_factors(scaling: Mapping[str, Any], waves: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the frequency of each wavelength is divided by."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    factors: NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return factors
