# SPDX-License-Identifier: Apache-2.0
"""Compare the graphs of a speech model with it: spectrograms, then what every encoder-decoder is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from genai_bundle.builder import parity_seq2seq
from genai_bundle.builder.closeness import Array, LoadedGraph, largest
from genai_bundle.builder.parity_seq2seq import Answer


def check(graphs: Mapping[str, LoadedGraph], sounds: Sequence[Array], answers: Sequence[Answer]) -> float:
    """The largest difference. `answers` are to the features of `sounds`. Raises ProofError beyond the tolerance."""
    worst = 0.0
    for sound, answer in zip(sounds, answers, strict=True):
        features = graphs["log_mel"]({"audio": sound})["input_features"][0]
        worst = max(worst, largest("one sound", features, answer.heard["input_features"], "input_features"))
    return max(worst, parity_seq2seq.check(graphs, answers))
