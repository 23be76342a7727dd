# SPDX-License-Identifier: Apache-2.0
"""What a model of pictures and texts itself says, and what its processor makes of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.closeness import Array
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.parity_dual import Pair
from genai_bundle.builder.source_model import source_model


def look(checkpoint: Checkpoint, texts: Sequence[Sequence[int]], pictures: Sequence[Array]) -> list[Pair]:
    """Each text beside one of the pictures, u8[H,W,3]."""
    model = source_model(checkpoint, AutoModel)
    with quiet():
        processor: Any = AutoImageProcessor.from_pretrained(
            checkpoint.path, use_fast=False, trust_remote_code=False, local_files_only=True
        )
    found = []
    with torch.no_grad(), quiet():
        for index, ids in enumerate(texts):
            pixels = pictures[index % len(pictures)]
            values = processor(pixels, return_tensors="np", input_data_format="channels_last")["pixel_values"]
            output = model(input_ids=torch.tensor([list(ids)]), pixel_values=torch.from_numpy(np.asarray(values)))
            found.append(
                Pair(
                    np.array(ids), pixels, np.asarray(values[0]), output.text_embeds[0].numpy(),
                    output.image_embeds[0].numpy(), output.logits_per_image.numpy(),
                )
            )  # fmt: skip
    return found
