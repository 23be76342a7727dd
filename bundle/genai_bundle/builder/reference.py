# SPDX-License-Identifier: Apache-2.0
"""What the source model itself says: greedy tokens, logits and caches, the yardstick of every build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoTokenizer, DynamicCache

from genai_bundle.builder.checkpoint import Checkpoint, read_checkpoint
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.source_model import source_model

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """One greedy continuation.

    `ids` are the prompt's tokens, `tokens` the new ones. `logits` f32[len(ids) + len(tokens) - 1, vocabulary]: row i is
    the prediction after i + 1 tokens of `ids + tokens`. `keys` and `values` hold, for each layer, f32[heads,
    len(logits), head_size].
    """

    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: Array
    keys: tuple[Array, ...]
    values: tuple[Array, ...]

    @property
    def text(self) -> tuple[int, ...]:
        """Every token that was fed: all but the last new one."""
        return (*self.ids, *self.tokens[:-1])

    def sure(self, margin: float) -> int:
        """How many new tokens lead the second candidate by more than `margin`, before the first that does not."""
        rows = self.logits[len(self.ids) - 1 :]
        best = np.partition(rows, -2, axis=-1)[:, -2:]
        unsure = np.flatnonzero(best[:, 1] - best[:, 0] <= margin)
        return int(unsure[0]) if unsure.size else len(self.tokens)


class Reference:
    """A causal language model as transformers runs it, see `source_model`."""

    def __init__(self, source: Path | Checkpoint) -> None:
        self._model: Any = source_model(read_checkpoint(source) if isinstance(source, Path) else source)

    def greedy(self, ids: Sequence[int], steps: int) -> Golden:
        """Continue `ids` by `steps` tokens, one cached step each, not stopping at an end-of-text token."""
        cache = DynamicCache(config=self._model.config)
        rows: list[Array] = []
        tokens: list[int] = []
        feed = list(ids)
        with torch.no_grad():
            for _ in range(steps):
                output = self._model(input_ids=torch.tensor([feed]), past_key_values=cache, use_cache=True)
                rows.append(output.logits[0].float().numpy())
                feed = [int(rows[-1][-1].argmax())]
                tokens += feed
        keys = tuple(layer.keys[0].float().numpy() for layer in cache.layers)
        values = tuple(layer.values[0].float().numpy() for layer in cache.layers)
        return Golden(tuple(ids), tuple(tokens), np.concatenate(rows), keys, values)


def reference_name() -> str:
    """What the answers come from, for the record."""
    return f"transformers {transformers.__version__}, float32, eager attention"


def reference_ids(path: Path, prompt: Mapping[str, Any]) -> list[int] | None:
    """The token ids that transformers makes of `{"prompt": text}` or `{"messages": [...]}`; None where it cannot."""
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
            if "prompt" in prompt:
                return list(tokenizer(prompt["prompt"])["input_ids"])
            text = tokenizer.apply_chat_template(prompt["messages"], tokenize=False, add_generation_prompt=True)
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception:  # a missing optional package, an unknown class, a template that refuses: nothing to compare with
        return None


def reference_greedy(source: Path | Checkpoint, prompts: Sequence[Sequence[int]], steps: int) -> list[Golden]:
    """Golden continuations of several prompts of token ids. The model is released afterwards."""
    reference = Reference(source)
    return [reference.greedy(ids, steps) for ids in prompts]
