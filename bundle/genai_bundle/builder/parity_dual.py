# SPDX-License-Identifier: Apache-2.0
"""Compare the graphs of a model of pictures and texts with it: both towers, how alike they find a pair, the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genai_bundle.builder.closeness import Array, LoadedGraph, largest
from genai_bundle.builder.parity_encoder import Encoded
from genai_bundle.builder.parity_encoder import check as check_texts


@dataclass(frozen=True)
class Pair:
    """Token ids i64[N], pixels u8[H,W,3] and values f32[3,h,w] of a picture, both vectors, and logits f32[1,1]."""

    ids: Array
    pixels: Array
    values: Array
    text: Array
    image: Array
    logits: Array


def check(graphs: Mapping[str, LoadedGraph], pairs: Sequence[Pair]) -> float:
    """The largest difference. Raises ProofError where one is beyond the tolerance."""
    seen = 0.0
    for pair in pairs:
        made = graphs["preprocess"]({"pixels": pair.pixels})["pixel_values"][0]
        seen = max(seen, largest("a picture", made, pair.values, "pixel_values"))
    texts = [Encoded(pair.ids, {"embedding": pair.text}) for pair in pairs]
    worst = max(seen, check_texts(graphs["text"], texts))
    pictures = graphs["vision"]({"pixel_values": np.stack([pair.values for pair in pairs])})["embedding"]
    for pair, got in zip(pairs, pictures, strict=True):
        worst = max(worst, largest("a batch of pictures", got, pair.image, "embedding"))
        logits = graphs["compare"]({"image": pair.image[None], "text": pair.text[None]})["logits_per_image"]
        worst = max(worst, largest("a pair", logits, pair.logits, "logits_per_image"))
    return worst
