# SPDX-License-Identifier: Apache-2.0
"""What a text encoder itself says of texts, with pooling written down a second time, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.closeness import Array
from genai_bundle.builder.exporters.encoder import auto_class
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.parity_encoder import Encoded
from genai_bundle.builder.pooling import Pooling, read_pooling
from genai_bundle.builder.source_model import source_model


def encode(checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> list[Encoded]:
    """The model's outputs for texts of token ids, one at a time. The model is released afterwards."""
    model = source_model(checkpoint, auto_class(checkpoint.config))
    pooling = read_pooling(checkpoint.path)
    found = []
    with torch.no_grad(), quiet():
        for ids in texts:
            output = model(input_ids=torch.tensor([list(ids)]))
            found.append(Encoded(np.array(ids), _outputs(output, pooling)))
    return found


def _outputs(output: Any, pooling: Pooling | None) -> Mapping[str, Array]:
    if "logits" in output:
        return {"logits": output.logits[0].numpy()}
    hidden: Array = output.last_hidden_state[0].numpy()
    found = {"last_hidden_state": hidden}
    if output.get("pooler_output") is not None:
        found["pooler_output"] = output.pooler_output[0].numpy()
    if pooling is not None:
        found["embedding"] = pooled(hidden, pooling)
    return found


def pooled(hidden: Array, pooling: Pooling) -> Array:
    """The vector f32[width] of one text f32[tokens,width]."""
    count = len(hidden)
    ways = {
        "cls": hidden[0],
        "max": hidden.max(0),
        "mean": hidden.sum(0) / count,
        "mean_sqrt_len_tokens": hidden.sum(0) / np.sqrt(count),
    }
    vector = np.concatenate([ways[mode] for mode in pooling.modes])
    return vector / np.linalg.norm(vector) if pooling.normalised else vector
