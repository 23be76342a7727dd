# SPDX-License-Identifier: Apache-2.0
"""What another form of weights changes in what a causal language model says.

Measured on the source model with its own weights and with what the stored ones stand for; that the bundle computes the
latter is proved apart from this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.reference import Golden
from genai_bundle.builder.source_model import source_model
from genai_bundle.errors import SourceError

WINDOW = 1024
"""Tokens that are read at once for a perplexity, where the model's context is that long."""

Tell = Callable[[str], None]


def effect(checkpoint: Checkpoint, goldens: Sequence[Golden], text: str | None, tell: Tell) -> dict[str, str]:
    """Figures, ready to print, of what `checkpoint.changed` changes.

    Args:
        goldens: the answers with the changed weights. text: what perplexities are measured on, if anything.

    Raises:
        SourceError: the text is too short to measure anything on it.
    """
    plain = [golden for golden in goldens if not golden.offset and golden.known == len(golden.ids)]
    windows = _windows(checkpoint, text) if text is not None else []
    tell("measuring what the form of the weights changes")
    model = source_model(replace(checkpoint, changed={}))
    found, gap, same, count = {}, 0.0, 0, 0
    for golden in plain:
        logits = _logits(model, golden.text)
        gap = max(gap, float(np.abs(logits - golden.logits).max()))
        expected = logits[golden.known - 1 :].argmax(-1)
        same, count = same + int((expected == golden.tokens).sum()), count + len(expected)
    if plain:
        found["largest change of a golden logit"] = f"{gap:.3g}"
        found["greedy tokens that stay"] = f"{same} of {count}"
    if windows:
        before = perplexity(model, windows)
        del model
        after = perplexity(source_model(checkpoint), windows)
        tokens = sum(len(window) - 1 for window in windows)
        change = 100 * (after / before - 1)
        found["perplexity"] = f"{before:.4f} before, {after:.4f} after ({change:+.2f} %), {tokens} tokens"
    return found


def perplexity(model: Any, windows: Sequence[Sequence[int]]) -> float:
    """The exponential of the mean negative log likelihood of every token but the first of each window."""
    total, count = 0.0, 0
    for window in windows:
        rows = torch.from_numpy(_logits(model, window)[:-1]).double()
        chosen = torch.tensor(window[1:])[:, None]
        total -= float(rows.log_softmax(-1).gather(1, chosen).sum())
        count += len(window) - 1
    return exp(total / count)


def _windows(checkpoint: Checkpoint, text: str) -> list[list[int]]:
    """The text's tokens in pieces that do not overlap; a last one of a single token is left out."""
    tokenizer = Tokenizer.from_str(checkpoint.text.tokenizer.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.encode(text).ids
    length = min(WINDOW, checkpoint.context)
    found = [ids[start : start + length] for start in range(0, len(ids), length)]
    found = [window for window in found if len(window) > 1]
    if not found:
        raise SourceError(f"has {len(ids)} tokens, too few to measure a perplexity", where="--perplexity")
    return found


def _logits(model: Any, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Of all positions, f32[len(ids), vocabulary]."""
    with torch.no_grad(), quiet():
        logits: np.ndarray[Any, np.dtype[np.float32]] = (
            model(input_ids=torch.tensor([list(ids)]), use_cache=False)["logits"][0].float().numpy()
        )
    return logits
