# SPDX-License-Identifier: Apache-2.0
"""The source model as transformers runs it: what every bundle is compared with.

Where a bundle holds weights in another form, the model gets what that form stands for: so its graphs are held to the
same tolerance as those of unchanged weights, and a wrong zero point or a turned block cannot pass as the price of
quantisation.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters.conversion import convert
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.exporters.skeleton import parameter_names
from genai_bundle.errors import ProofError


def source_model(checkpoint: Checkpoint, auto: Any = AutoModelForCausalLM) -> Any:
    """The model in float32, attention written out, with the weights of `checkpoint.changed` in place of its own.

    Attention is `eager` here and fused in the exported trace on purpose: a mistake that both share is less likely.
    """
    arguments: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with quiet(), torch.no_grad():
        if checkpoint.gguf is not None:  # the weights from the file, but not its config, of which a part gets lost
            arguments |= {
                "gguf_file": checkpoint.gguf,
                "config": AutoConfig.from_pretrained(checkpoint.path, **arguments),
            }
        model = auto.from_pretrained(
            checkpoint.path, dtype=torch.float32, attn_implementation="eager", **arguments
        ).eval()
        if model._can_set_experts_implementation():
            model.set_experts_implementation("eager")
        if checkpoint.changed:
            _change(model, checkpoint)
    return model


def _change(model: Any, checkpoint: Checkpoint) -> None:
    held, _ = convert(model, checkpoint.tensors)
    aliases = parameter_names(model)
    missing = set(checkpoint.changed)
    for name, parameter in model.named_parameters():
        stored = next((held[other].name for other in [name, *aliases[name]] if other in held), name)
        if stored in checkpoint.changed:
            parameter.copy_(torch.from_numpy(checkpoint.changed[stored].numpy()))
            missing.discard(stored)
    if missing:
        raise ProofError("is stored in another form, but the model has no such parameter", where=sorted(missing)[0])
