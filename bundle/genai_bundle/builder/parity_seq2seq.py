# SPDX-License-Identifier: Apache-2.0
"""Compare an encoder and a decoder with the model: hidden states, prefill, cached steps, pieces, a padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genai_bundle.builder.closeness import Array, LoadedGraph, largest, padded


@dataclass(frozen=True)
class Answer:
    """What the model itself makes of one request.

    heard: the encoder's input for one row, without the batch axis: input_ids i64[N], or features as they are.
    hidden: the encoder's last hidden state f32[E,width]. start: the tokens that the answer begins with. tokens: greedy
    ones. logits f32[len(start) + len(tokens) - 1, vocabulary]: row i is the prediction after i + 1 tokens of both.
    """

    heard: Mapping[str, Array]
    hidden: Array
    start: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: Array


@dataclass
class _Decoder:
    """A decoder with its two caches, fed as the pipeline feeds it."""

    graph: LoadedGraph
    hidden: Array
    mask: Array

    def __post_init__(self) -> None:
        dims = {name: dims for name, dims in self.graph.dims.items() if name.startswith("past_key_values.")}
        batch = len(self.mask)
        self._past = {name: np.zeros((batch, int(dim[1]), 0, int(dim[3])), np.float32) for name, dim in dims.items()}

    def feed(self, ids: Array) -> Array:
        """Logits f32[batch,n,vocabulary] of the tokens i64[batch,n]."""
        feeds = {"input_ids": ids, "encoder_hidden_states": self.hidden, "encoder_attention_mask": self.mask}
        outputs = self.graph({**feeds, **self._past})
        self._past = {name: outputs[name.replace("past_key_values", "present")] for name in self._past}
        self.hidden = self.hidden[:, :0]
        return outputs["logits"]


def check(graphs: Mapping[str, LoadedGraph], answers: Sequence[Answer]) -> float:
    """The largest difference over all checks. Raises ProofError where one is beyond the tolerance."""
    worst = 0.0
    for answer in answers:
        one = {"attention_mask": np.ones((1, 1), np.int64)}
        hidden = graphs["encoder"]({name: row[None] for name, row in answer.heard.items()} | one)["last_hidden_state"]
        worst = max(worst, largest("one text", hidden[0], answer.hidden, "last_hidden_state"))
        text = np.array([*answer.start, *answer.tokens[:-1]])
        count = len(answer.start)
        for way, cuts in (
            ("prefill and cached steps", range(count, len(text))),
            ("prefill in two pieces", [max(1, len(text) // 2)]),
        ):
            decoder = _Decoder(graphs["decoder"], hidden, np.ones(hidden.shape[:2], np.int64))
            rows = [decoder.feed(piece[None])[0] for piece in np.split(text, list(cuts))]
            worst = max(worst, largest(way, np.concatenate(rows), answer.logits, "logits"))
    if len(answers) > 1:
        worst = max(worst, _check_batch(graphs, answers))
    return worst


def _check_batch(graphs: Mapping[str, LoadedGraph], answers: Sequence[Answer]) -> float:
    """The shortest and the longest request as one batch: an ignored mask shows here."""
    ordered = sorted(answers, key=lambda answer: len(answer.hidden))
    pair = [ordered[0], ordered[-1]]
    batch, masks = {}, []
    for name in pair[0].heard:
        batch[name], mask = padded([answer.heard[name] for answer in pair])
        masks.append(mask)
    hidden = graphs["encoder"](batch | {"attention_mask": masks[0]})["last_hidden_state"]
    mask = masks[0] if hidden.shape[1] == masks[0].shape[1] else np.ones(hidden.shape[:2], np.int64)
    worst = 0.0
    for index, answer in enumerate(pair):
        got = hidden[index, : len(answer.hidden)]
        worst = max(worst, largest(f"row {index} of a padded batch", got, answer.hidden, "last_hidden_state"))
    decoder = _Decoder(graphs["decoder"], hidden, mask)
    count, steps = len(pair[0].start), min(len(answer.tokens) for answer in pair)
    rows = [decoder.feed(np.array([answer.start for answer in pair]))]
    rows += [decoder.feed(np.array([[answer.tokens[step]] for answer in pair])) for step in range(steps - 1)]
    logits = np.concatenate(rows, axis=1)
    for index, answer in enumerate(pair):
        expected = answer.logits[: count + steps - 1]
        worst = max(worst, largest(f"row {index} of a padded batch", logits[index], expected, "logits"))
    return worst
