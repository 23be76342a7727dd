# SPDX-License-Identifier: Apache-2.0
"""Compare a text encoder with the model: each text alone, and the shortest and the longest as a padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genai_bundle.builder.closeness import Array, LoadedGraph, largest, padded


@dataclass(frozen=True)
class Encoded:
    """Token ids i64[N], and what the model makes of them: outputs by name, without the batch axis."""

    ids: Array
    outputs: Mapping[str, Array]


def check(graph: LoadedGraph, texts: Sequence[Encoded]) -> float:
    """The largest difference. Raises ProofError where one is beyond the tolerance."""
    worst = 0.0
    for text in texts:
        outputs = graph({"input_ids": text.ids[None], "attention_mask": np.ones((1, 1), np.int64)})
        worst = max(worst, _compare("one text", {name: outputs[name][0] for name in text.outputs}, text))
    if len(texts) > 1:
        ordered = sorted(texts, key=lambda text: len(text.ids))
        pair = [ordered[0], ordered[-1]]
        ids, mask = padded([text.ids for text in pair])
        outputs = graph({"input_ids": ids, "attention_mask": mask})
        for index, text in enumerate(pair):
            row = {name: outputs[name][index] for name in text.outputs}
            worst = max(worst, _compare(f"row {index} of a padded batch", row, text))
    return worst


def _compare(check: str, got: Mapping[str, Array], text: Encoded) -> float:
    """What the model gives for each token is compared for the real ones."""
    worst = 0.0
    for name, expected in text.outputs.items():
        each = expected.ndim == 2
        worst = max(worst, largest(check, got[name][: len(text.ids)] if each else got[name], expected, name))
    return worst
