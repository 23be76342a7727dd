# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's head for multi-token prediction as a graph of its own: from a token and the hidden state at the
position before it to the logits behind the token.

transformers reads such heads with its `MtpModel`, which shares the embedding and the output matrix with the model; so
does the graph, whose weights bear the names that the model's graph has them under. Where there are several heads, each
for one token more, the first is built: it guesses further tokens from its own hidden states.

Sources: Gloeckle et al., "Better & Faster Large Language Models via Multi-token Prediction" (2024); DeepSeek-AI,
"DeepSeek-V3 Technical Report" (2024), section 2.2.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from transformers import AutoConfig, DynamicCache, modeling_layers
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters.conversion import convert
from genai_bundle.builder.exporters.skeleton import construct, fake_parameters, meta_parameters
from genai_bundle.builder.exporters.tracing import Weights, match_weights, trace, traceable
from genai_bundle.builder.lazy import Weight
from genai_bundle.builder.safetensors import StoredTensor


def stated(checkpoint: Checkpoint) -> bool:
    """Whether heads are wanted, and the config states some under the name that transformers knows."""
    if not checkpoint.heads or checkpoint.gguf is not None or not hasattr(modeling_layers, "MtpModel"):
        return False
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError):  # said where the model is made
        return False
    return bool(getattr(config.get_text_config(), "num_mtp_layers", None))


def stored(model: Any, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint that belong to heads which transformers can read; none where it cannot."""
    if not stated(checkpoint) or not model._keys_to_ignore_on_load_unexpected:
        return {}
    try:
        pattern = modeling_layers.MtpModel.get_mtp_weights_regex(model)
    except ValueError:  # a class that names no tensors of heads for a model of this depth
        return {}
    return {name: tensor for name, tensor in checkpoint.tensors.items() if pattern.search(name)}


def names(checkpoint: Checkpoint) -> set[str]:
    """The names that weights of the head have in its graph: those of tensors, and of what is joined of them."""
    if not stated(checkpoint):
        return set()
    model = construct(checkpoint.path)  # making a head touches the model's weights
    if not (tensors := stored(model, checkpoint)):
        return set()
    held, _ = convert_head(construct_head(model), model, checkpoint)
    return {*tensors, *(weight.name for weight in held.values())}


def construct_head(model: Any) -> Any:
    """The first head of a model, which shares the model's embedding and output matrix; new parameters have no bytes."""
    with traceable(), meta_parameters():
        head = modeling_layers.MtpModel(model, 1).eval()
        head.tie_with_main_model(model)
    return head


def convert_head(head: Any, model: Any, checkpoint: Checkpoint) -> tuple[dict[str, Weight], list[str]]:
    """The weights of a head by the names of its state, without those that it shares; and the tensors without a use."""
    return convert(head, stored(model, checkpoint), head.get_weight_conversions(model))


def bind_head(head: Any, model: Any, checkpoint: Checkpoint, shared: Weights) -> tuple[Weights, list[str]]:
    """For each parameter of a head, the checkpoint's tensor; and tensors of heads that it has no use for.

    `shared` are those of the model's parameters.
    """
    held, unused = convert_head(head, model, checkpoint)
    known = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    owned = {name: known[id(one)] for name, one in head.named_parameters(remove_duplicate=False) if id(one) in known}
    return match_weights(head, checkpoint, held, {name: shared[own] for name, own in owned.items()}), unused


def trace_head(head: Any, weights: Weights, width: int, first: tuple[int, ...], second: tuple[int, ...]) -> ir.Model:
    """The graph, as it comes from the tracer. `first`, `second`: batch, sequence and past of the samples."""
    fake_parameters(head, lambda _: False)
    module = _Head(head)
    named = {f"head.{name}": tensor for name, tensor in weights.items()}
    with traceable():
        samples = [_sample(head, width, *sizes) for sizes in (first, second)]
    return trace(module, named, *samples)


class _Head(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, input_ids: Any, hidden_before: Any, attention_mask: Any, position_ids: Any, past_key_values: Any,
        logits_to_keep: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Its states lack the first token of a text, so that their positions are one behind."""
        head, cache = self.head, past_key_values
        places, embeds = position_ids + 1, head.embed_tokens(input_ids)
        rope = {"layer_type": head.config.layer_types[0]} if head.has_per_layer_rope else {}
        rotation = None if head.rotary_emb is None else head.rotary_emb(embeds, position_ids=places, **rope)
        config = head.config.per_layer_config[0] if head.config.is_heterogeneous else head.config
        kind = (getattr(head.config, "layer_types", None) or ["full_attention"])[0]
        mask = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[kind](
            config=config, inputs_embeds=embeds, attention_mask=attention_mask, cache=cache, position_ids=position_ids,
            layer_idx=0,
        )  # fmt: skip
        states = head.layers[0](
            embeds, hidden_before, position_embeddings=rotation, attention_mask=mask, position_ids=places, cache=cache
        )
        if head.use_shared_post_norm:
            states = head.shared_post_norm(states)
        logits = head._project_to_logits(states[:, logits_to_keep, :])
        return {"logits": logits, "hidden": states, "past_key_values": cache}


def _sample(head: Any, width: int, batch: int, sequence: int, past: int) -> dict[str, Any]:
    """As `skeleton.sample` makes it, of what a head takes."""
    mask = torch.ones(batch, past + sequence, dtype=torch.long)
    mask[0, 0] = 0
    return {
        "input_ids": torch.zeros(batch, sequence, dtype=torch.long),
        "hidden_before": torch.zeros(batch, sequence, width),
        "attention_mask": mask,
        "position_ids": torch.arange(past, past + sequence)[None].repeat(batch, 1),
        "past_key_values": _cache(head, width, batch, past),
        "logits_to_keep": torch.arange(sequence),
    }


def _cache(head: Any, width: int, batch: int, past: int) -> Any:
    """A plain cache of one layer with `past` zeros, of the shape that the layer itself fills one with."""
    empty = DynamicCache()
    mask = torch.ones(1, 2, dtype=torch.long)
    _Head(head)(
        torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, width), mask, torch.arange(2)[None], empty,
        torch.arange(1),
    )  # fmt: skip
    layer = empty.layers[0]
    shapes = [(batch, tensor.shape[1], past, tensor.shape[3]) for tensor in (layer.keys, layer.values)]
    cache = DynamicCache()
    cache.update(*(torch.zeros(shape) for shape in shapes), 0)
    return cache
