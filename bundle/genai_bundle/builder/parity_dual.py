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


def check(graphs: Mapping[str, LoadedGraph], pairs: Sequence[Pair], level: float) -> float:
    """The largest difference but that of pixels, which may be one `level` of 256: Pillow rounds its weights.

    Raises:
        ProofError: a difference is beyond the tolerance.
    """
    for pair in pairs:
        made = graphs["preprocess"]({"pixels": pair.pixels})["pixel_values"][0]
        largest("a picture", made, pair.values, "pixel_values", 1.01 * level)
        off = float((np.abs(made - pair.values) > level / 2).mean())
        largest("pictures, the part of pixels off by a level", np.array(off), np.array(0.0), "pixel_values", 0.01)
    worst = check_texts(graphs["text"], [Encoded(pair.ids, {"embedding": pair.text}) for pair in pairs])
    pictures = graphs["vision"]({"pixel_values": np.stack([pair.values for pair in pairs])})["embedding"]
    for pair, got in zip(pairs, pictures, strict=True):
        worst = max(worst, largest("a batch of pictures", got, pair.image, "embedding"))
        logits = graphs["compare"]({"image": pair.image[None], "text": pair.text[None]})["logits_per_image"]
        worst = max(worst, largest("a pair", logits, pair.logits, "logits_per_image"))
    return worst
