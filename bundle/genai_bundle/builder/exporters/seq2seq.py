# SPDX-License-Identifier: Apache-2.0
"""An encoder-decoder as two graphs: one for the encoder, one for the decoder in prefill and step alike.

The decoder computes `present cross = past cross + projection of encoder_hidden_states`, joined along the tokens. The
first run gives it all hidden states and an empty past; every later run gives none of the former (length 0) and the
filled past. So one graph does both, nothing is projected twice, and no operator chooses between two branches.
The classes of transformers do exactly this when their cache is told that its cross-attention is not filled yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters import Export
from genai_bundle.builder.exporters.parts import Part, export_parts

STATE: Mapping[str, Mapping[str, Any]] = {
    "kv": {
        "graph": "decoder",
        "ports": {"past_key_values.{n}.decoder.{h}": "present.{n}.decoder.{h}"},
        "axis": 2,
        "update": "append",
        "tokens": "input_ids",
    },
    "cross": {
        "graph": "decoder",
        "ports": {"past_key_values.{n}.encoder.{h}": "present.{n}.encoder.{h}"},
        "axis": 2,
        "update": "once",
        "tokens": "encoder_hidden_states",
    },
}

Shape = tuple[int, int]
"""Heads and their size."""


def export_text(checkpoint: Checkpoint) -> Export:
    """Text to text: encoder (input_ids, attention_mask) and decoder, which takes the encoder's mask too."""

    def parts(model: Any) -> Mapping[str, Part]:
        first, second = (_text(2, 3), _text(4, 6))
        return {"encoder": encoder(model, first, second), "decoder": decoder(model, first, masked=True)}

    return export_parts(checkpoint, AutoModelForSeq2SeqLM, parts, STATE)


def export_speech(checkpoint: Checkpoint) -> Export:
    """Speech to text: an encoder of features of one length, and a decoder that needs no mask for them."""

    def parts(model: Any) -> Mapping[str, Part]:
        config = model.config
        frames = 2 * int(config.max_source_positions)  # the encoder's second convolution halves them
        first, second = ({"input_features": torch.zeros(batch, int(config.num_mel_bins), frames)} for batch in (2, 4))
        axes = {"*": ("batch", None, None)}
        encoder = Part(_Encoder(model), first, second, axes)
        return {"encoder": encoder, "decoder": decoder(model, first, masked=False)}

    return export_parts(checkpoint, AutoModelForSpeechSeq2Seq, parts, STATE)


def encoder(model: Any, first: Mapping[str, Any], second: Mapping[str, Any]) -> Part:
    axes = {"last_hidden_state": ("batch", "sequence", None), "*": ("batch", "sequence")}
    return Part(_Encoder(model), first, second, axes, ("attention_mask",))


def decoder(model: Any, heard: Mapping[str, Any], *, masked: bool) -> Part:
    """The decoder of a model whose encoder takes the arguments `heard`."""
    output = model(**heard, decoder_input_ids=torch.zeros(2, 2, dtype=torch.long), use_cache=True)
    width = output.encoder_last_hidden_state.shape[-1]
    cache = output.past_key_values
    own = [_shape(layer) for layer in cache.self_attention_cache.layers]
    cross = [_shape(layer) for layer in cache.cross_attention_cache.layers]

    def sample(batch: int, sequence: int, past: int, new: int, filled: int) -> dict[str, Any]:
        held = {
            str(index): {
                "decoder": _zeros(batch, own[index], past),
                "encoder": _zeros(batch, cross[index], filled),
            }
            for index in range(len(own))
        }
        mask = torch.ones(batch, new + filled, dtype=torch.long)
        mask[0, -1] = 0  # an all-ones mask would be dropped from the graph
        return {
            "input_ids": torch.zeros(batch, sequence, dtype=torch.long),
            "encoder_hidden_states": torch.zeros(batch, new, width),
            **({"encoder_attention_mask": mask} if masked else {}),
            "past_key_values": held,
        }

    axes = {
        "input_ids": ("batch", "sequence"),
        "encoder_hidden_states": ("batch", "encoder_new", None),
        "encoder_attention_mask": ("batch", "encoder_total"),
        "logits": ("batch", "sequence", None),
        "past_key_values.*.decoder.*": ("batch", None, "past", None),
        "past_key_values.*.encoder.*": ("batch", None, "encoder_past", None),
        "present.*.decoder.*": ("batch", None, "total", None),
        "present.*.encoder.*": ("batch", None, "encoder_total", None),
    }
    return Part(_Decoder(model), sample(2, 3, 5, 7, 9), sample(4, 6, 9, 12, 15), axes)


class _Encoder(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> dict[str, Any]:
        return {"last_hidden_state": self.model.get_encoder()(**inputs).last_hidden_state}


class _Decoder(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Any,
        encoder_hidden_states: Any,
        past_key_values: Mapping[str, Any],
        encoder_attention_mask: Any = None,
    ) -> dict[str, Any]:
        caches = {
            side: DynamicCache([(layer[side]["key"], layer[side]["value"]) for layer in past_key_values.values()])
            for side in ("decoder", "encoder")
        }
        both = EncoderDecoderCache(caches["decoder"], caches["encoder"])
        both.is_updated = dict.fromkeys(both.is_updated, False)
        mask = {} if encoder_attention_mask is None else {"attention_mask": encoder_attention_mask}
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
            decoder_input_ids=input_ids, past_key_values=both, use_cache=True, **mask,
        )  # fmt: skip
        present = {
            str(index): {
                side: {"key": cache.layers[index].keys, "value": cache.layers[index].values}
                for side, cache in caches.items()
            }
            for index in range(len(past_key_values))
        }
        return {"logits": output.logits, "present": present}


def _text(batch: int, length: int) -> dict[str, Any]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, -1] = 0
    return {"input_ids": torch.zeros(batch, length, dtype=torch.long), "attention_mask": mask}


def _shape(layer: Any) -> Shape:
    return int(layer.keys.shape[1]), int(layer.keys.shape[3])


def _zeros(batch: int, shape: Shape, length: int) -> dict[str, Any]:
    heads, size = shape
    return {half: torch.zeros(batch, heads, length, size) for half in ("key", "value")}
