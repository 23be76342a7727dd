# SPDX-License-Identifier: Apache-2.0
"""A text encoder, with its head or its pooling, as one graph; and both towers of a model of pictures and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import AutoModel

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters import Export
from genai_bundle.builder.exporters.parts import Part, export_parts
from genai_bundle.builder.pooling import Pooling, read_pooling


def auto_class(config: Mapping[str, Any]) -> Any:
    """The class of transformers that chooses the model's class by its config: by the head that it has."""
    name = str((config.get("architectures") or ["Model"])[0])
    head = name[name.index("For") :] if "For" in name else ""
    return getattr(transformers, f"AutoModel{head}")


def export_encoder(checkpoint: Checkpoint) -> Export:
    """input_ids, attention_mask -> last_hidden_state, pooler_output and embedding, or the logits of a head."""
    pooling = read_pooling(checkpoint.path)

    def parts(model: Any) -> Mapping[str, Part]:
        axes = {
            "last_hidden_state": ("batch", "sequence", None),
            "logits": ("batch", "sequence", None) if _each(checkpoint.config) else ("batch", None),
            "scores": ("batch", "sequence", None) if _each(checkpoint.config) else ("batch", None),
            "pooler_output": ("batch", None),
            "embedding": ("batch", None),
            "*": ("batch", "sequence"),
        }
        return {"encoder": Part(_Encoder(model, pooling), texts(2, 3), texts(4, 6), axes, ("attention_mask",))}

    return export_parts(checkpoint, auto_class(checkpoint.config), parts)


def export_dual(checkpoint: Checkpoint) -> Export:
    """Two towers, `text` and `vision`, into one space, and `compare`, which says how alike two of its vectors are."""
    vision = checkpoint.config["vision_config"]
    size, channels = int(vision.get("image_size", 224)), int(vision.get("num_channels", 3))

    def parts(model: Any) -> Mapping[str, Part]:
        width = int(model.config.projection_dim)
        return {
            "text": Part(
                _Text(model), texts(2, 3), texts(4, 6),
                {"embedding": ("batch", None), "*": ("batch", "sequence")}, ("attention_mask",),
            ),
            "vision": Part(
                _Vision(model),
                {"pixel_values": torch.zeros(2, channels, size, size)},
                {"pixel_values": torch.zeros(3, channels, size, size)},
                {"pixel_values": ("batch", None, None, None), "embedding": ("batch", None)},
            ),
            "compare": Part(
                _Compare(model),
                {"image": torch.zeros(2, width), "text": torch.zeros(3, width)},
                {"image": torch.zeros(4, width), "text": torch.zeros(5, width)},
                {"image": ("images", None), "text": ("texts", None), "logits_per_image": ("images", "texts")},
            ),
        }  # fmt: skip

    return export_parts(checkpoint, AutoModel, parts)


def texts(batch: int, length: int) -> dict[str, Any]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, -1] = 0  # an all-ones mask would be dropped from the graph
    return {"input_ids": torch.zeros(batch, length, dtype=torch.long), "attention_mask": mask}


def _each(config: Mapping[str, Any]) -> bool:
    """Whether the head answers for each token."""
    return str((config.get("architectures") or [""])[0]).endswith(("ForMaskedLM", "ForTokenClassification"))


class _Encoder(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, model: Any, pooling: Pooling | None) -> None:
        super().__init__()
        self.model, self._pooling = model, pooling

    def forward(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        if "logits" in output:
            return {"logits": output.logits}
        found = {"last_hidden_state": output.last_hidden_state}
        if output.get("pooler_output") is not None:
            found["pooler_output"] = output.pooler_output
        if self._pooling is not None:
            found["embedding"] = _pooled(output.last_hidden_state, attention_mask, self._pooling)
        return found


class _Text(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        output = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return {"embedding": torch.nn.functional.normalize(output.pooler_output)}


class _Vision(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Any) -> dict[str, Any]:
        output = self.model.get_image_features(pixel_values=pixel_values)
        return {"embedding": torch.nn.functional.normalize(output.pooler_output)}


class _Compare(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Any, text: Any) -> dict[str, Any]:
        return {"logits_per_image": image @ text.T * self.model.logit_scale.exp()}


def _pooled(hidden: Any, mask: Any, pooling: Pooling) -> Any:
    """One vector of each text, of its real tokens."""
    real = mask[:, :, None].to(hidden.dtype)
    total, count = (hidden * real).sum(1), real.sum(1)
    found = {
        "cls": lambda: hidden[:, 0],
        "max": lambda: hidden.masked_fill(real == 0, -1e9).max(1).values,
        "mean": lambda: total / count,
        "mean_sqrt_len_tokens": lambda: total / count.sqrt(),
    }
    vector = torch.cat([found[mode]() for mode in pooling.modes], 1)
    return torch.nn.functional.normalize(vector) if pooling.normalised else vector
