# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's head for multi-token prediction itself says: the yardstick of its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters import HeadError, heads
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.exporters.skeleton import construct
from genai_bundle.builder.source_model import source_head, source_model

GUESSES = 6
"""Tokens that are guessed behind each text: the first from the model's hidden state, the others from the head's own."""


@dataclass(frozen=True)
class Guessed:
    """A head's answer: f32[len(ids) - 1, vocabulary] for each token of a text but the first, and the `guesses` that it
    goes on with, from its own hidden states, with f32[len(guesses), vocabulary]. The last of the former is `first`."""

    ids: tuple[int, ...]
    logits: NDArray[np.float32]
    guesses: tuple[int, ...]
    guessed: NDArray[np.float32]


def ask_head(checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> list[Guessed]:
    """What the first head of a checkpoint says; nothing where transformers reads none from it.

    Raises HeadError where the checkpoint has a head, and transformers cannot load or run it.
    """
    if not heads.stated(checkpoint):
        return []
    with quiet(), torch.no_grad():
        if not heads.stored(construct(checkpoint.path), checkpoint):
            return []
        model = source_model(checkpoint)
        try:
            head = source_head(model, checkpoint)
            return [_ask(model, head, text) for text in texts]
        except Exception as error:  # whatever its code or its weights lack: the model can be built without
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise HeadError(f"transformers cannot run the checkpoint's head: {reason}", where="config.json") from error


def _ask(model: Any, head: Any, text: Sequence[int]) -> Guessed:
    from transformers.cache_utils import MtpCache

    ids, count = torch.tensor([list(text)]), len(text)
    hidden = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
    cache = MtpCache(config=model.config.get_mtp_config())

    def run(hidden: Any, ids: Any, first: int) -> tuple[Any, Any]:
        places = torch.arange(first, first + ids.shape[1])[None]
        states = head.forward_layer(0, hidden, places, cache, input_ids=ids)
        return states, head._project_to_logits(states)[0].float()

    states, logits = run(hidden[:, :-1], ids[:, 1:], 1)
    rows, guesses = [logits[-1:]], list[int]()
    for place in range(count, count + GUESSES):
        guesses.append(int(rows[-1][-1].argmax()))
        states, row = run(states[:, -1:], torch.tensor([guesses[-1:]]), place)
        rows.append(row)
    return Guessed(tuple(text), logits.numpy(), tuple(guesses), torch.cat(rows[1:]).numpy())
