# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints with a head for multi-token prediction, in the layouts in which such are published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from families import BASE, save, write_text_files

FIRST = 68
"""Of the 26 ids that are known to a trained checkpoint."""

MELLUM: dict[str, Any] = {
    "head_dim": 8, "sliding_window": 12, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 1, "layer_types": ["full_attention", "sliding_attention"],
}  # fmt: skip

DEEPSEEK: dict[str, Any] = {
    "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "kv_lora_rank": 8, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10,
    "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "num_key_value_heads": 4, "num_nextn_predict_layers": 1,
}  # fmt: skip


def mellum(path: Path, steps: int = 0, **config: Any) -> None:
    """One layer below `mtp.`, with its projection and norms beside it; trained for some steps to follow a cycle."""
    model, head = _made("Mellum", MELLUM | config)
    save(model, path)
    if steps:
        train(model, head, steps)
        model.save_pretrained(path)
    beside = {"eh_proj": "fc", "enorm": "pre_fc_norm_embedding", "hnorm": "pre_fc_norm_hidden", "post_norm": "norm"}

    def named(name: str) -> str:
        first, _, rest = name.partition(".")
        return f"mtp.{beside[first]}.{rest}" if first in beside else f"mtp.layers.0.{name}"

    _add(path, head, named)


def deepseek(path: Path) -> None:
    """A layer behind the last one, with copies of the embedding and the output matrix."""
    import torch

    model, head = _made("DeepseekV3", DEEPSEEK)
    save(model, path)
    _add(path, head, lambda name: f"model.layers.2.{name.replace('post_norm', 'shared_head.norm')}", {
        "model.layers.2.embed_tokens.weight": torch.zeros(260, 32),
        "model.layers.2.shared_head.head.weight": torch.zeros(260, 32),
    })  # fmt: skip


def _made(name: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """A model, and a head with random weights."""
    import torch
    import transformers
    from transformers.modeling_layers import MtpModel

    made = getattr(transformers, f"{name}Config")(**(BASE | config))
    model = transformers.AutoModelForCausalLM.from_config(made)
    head = MtpModel(model, 1)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in head.layers.parameters():
            parameter.normal_(std=0.15).add_(1.0 if parameter.dim() == 1 else 0.0)
    return model, head


def _add(path: Path, head: Any, name: Any, more: dict[str, Any] | None = None) -> None:
    """Write the head's weights beside the model's, each expert by itself."""
    from safetensors.torch import load_file, save_file

    found = dict(more or {})
    for inner, value in head.layers[0].state_dict().items():
        own = name(inner.removeprefix("mtp_block."))
        if match := re.fullmatch(r"(.*experts)\.(gate_up|down)_proj", own):
            for index, expert in enumerate(value):
                parts = expert.chunk(2) if match[2] == "gate_up" else [expert]
                for part, word in zip(parts, ("gate", "up") if match[2] == "gate_up" else ("down",), strict=True):
                    found[f"{match[1]}.{index}.{word}_proj.weight"] = part.contiguous()
        else:
            found[own] = value.contiguous()
    file = path / "model.safetensors"
    save_file(load_file(file) | found, file, metadata={"format": "pt"})
    write_text_files(path)


def train(model: Any, head: Any, steps: int) -> None:
    """Teach both that after an id comes the one seven places on."""
    import torch

    torch.manual_seed(5)
    parameters = {id(one): one for part in (model, head) for one in part.parameters()}
    optimizer = torch.optim.Adam(parameters.values(), lr=5e-3)
    places = torch.arange(1, 24)[None]
    for _ in range(steps):
        begin = torch.randint(26, (16, 1))
        ids = FIRST + (begin + 7 * torch.arange(24)) % 26
        output = model(ids, output_hidden_states=True)
        states = head.forward_layer(0, output.hidden_states[-1][:, :-1], places, None, input_ids=ids[:, 1:])
        guessed = head._project_to_logits(states)
        loss = sum(
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten())
            for logits, wanted in ((output.logits, ids), (guessed, ids[:, 1:]))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
