# SPDX-License-Identifier: Apache-2.0
"""What the source model itself says: greedy tokens, logits and caches, the yardstick of every build."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer

from genai_bundle.builder.checkpoint import Checkpoint, read_checkpoint
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.parity import CHUNK
from genai_bundle.builder.source_model import is_large, source_model

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """A text to continue: token ids, the position that the first of them is said to have, and of how many of the last
    of them the logits are wanted, None for all."""

    ids: Sequence[int]
    offset: int = 0
    known: int | None = None


@dataclass(frozen=True)
class Golden:
    """One greedy continuation.

    `ids` are the prompt's tokens, `tokens` the new ones, `offset` the first position. `logits` f32[known + len(tokens)
    - 1, vocabulary] begin with the prediction of the first of the last `known` tokens of the prompt. `keys` and
    `values` hold, for each layer, f32[heads, length, head_size]; nothing where only a part of the logits is known.
    """

    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: Array
    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    offset: int = 0

    @property
    def known(self) -> int:
        return len(self.logits) - len(self.tokens) + 1

    @property
    def text(self) -> tuple[int, ...]:
        """Every token that was fed: all but the last new one."""
        return (*self.ids, *self.tokens[:-1])

    def sure(self, margin: float) -> int:
        """How many new tokens lead the second candidate by more than `margin`, before the first that does not."""
        rows = self.logits[self.known - 1 :]
        best = np.partition(rows, -2, axis=-1)[:, -2:]
        unsure = np.flatnonzero(best[:, 1] - best[:, 0] <= margin)
        return int(unsure[0]) if unsure.size else len(self.tokens)


class Reference:
    """A causal language model as transformers runs it, see `source_model`."""

    def __init__(self, source: Path | Checkpoint) -> None:
        self._model: Any = source_model(read_checkpoint(source) if isinstance(source, Path) else source)

    def greedy(self, question: Question, steps: int) -> Golden:
        """Continue a text by `steps` tokens, one cached step each, not stopping at an end-of-text token."""
        ids, known = list(question.ids), question.known or len(question.ids)
        begin = len(ids) - known
        with torch.no_grad(), quiet():
            self._run([0], 0, 0, 1, DynamicCache(config=self._model.config))  # forgets how long earlier texts were
            cache = DynamicCache(config=self._model.config)
            for start in range(0, begin, CHUNK):
                self._run(ids[start : min(start + CHUNK, begin)], start, question.offset, 1, cache)
            rows = [self._run(ids[begin:], begin, question.offset, known, cache)]
            tokens = [int(rows[-1][-1].argmax())]
            while len(tokens) < steps:
                rows.append(self._run(tokens[-1:], len(ids) + len(tokens) - 1, question.offset, 1, cache))
                tokens.append(int(rows[-1][-1].argmax()))
        keys: tuple[Array, ...] = ()
        values: tuple[Array, ...] = ()
        if not begin:
            keys = tuple(_held(layer, "keys") for layer in cache.layers)
            values = tuple(_held(layer, "values") for layer in cache.layers)
        return Golden(tuple(ids), tuple(tokens), np.concatenate(rows), keys, values, question.offset)

    def together(self, questions: Sequence[Question], steps: int) -> list[Golden]:
        """The same for several texts as the rows of one batch, padded on the left.

        A run of a model that is too large for memory reads and converts all weights, for one row or for many.
        """
        width = max(len(question.ids) for question in questions)
        pads = [width - len(question.ids) for question in questions]
        ids = torch.tensor([[0] * pad + list(question.ids) for pad, question in zip(pads, questions, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
        places = (mask.cumsum(1) - 1).clamp(min=0) + torch.tensor([[question.offset] for question in questions])
        rows: list[Array] = []
        tokens: list[Any] = []
        with torch.no_grad(), quiet():
            cache = DynamicCache(config=self._model.config)
            name = "cache" if "cache" in inspect.signature(self._model.forward).parameters else "past_key_values"
            while len(tokens) < steps:
                output = self._model(
                    input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, **{name: cache}
                )
                rows.append(output.logits.float().numpy())
                ids = torch.from_numpy(rows[-1][:, -1:].argmax(-1))
                tokens.append(ids[:, 0])
                mask, places = torch.cat([mask, torch.ones_like(ids)], dim=1), places[:, -1:] + 1
        logits, new = np.concatenate(rows, axis=1), torch.stack(tokens, dim=1).tolist()
        layers = [(layer.keys.float().numpy(), layer.values.float().numpy()) for layer in cache.layers]
        return [
            Golden(
                tuple(question.ids),
                tuple(new[row]),
                logits[row, pad:],
                tuple(keys[row, :, pad:] for keys, _ in layers),
                tuple(values[row, :, pad:] for _, values in layers),
                question.offset,
            )
            for row, (question, pad) in enumerate(zip(questions, pads, strict=True))
        ]

    @property
    def takes_rows(self) -> bool:
        """Whether rows of different length do not disturb each other: all layers hold a plain, whole cache."""
        layers = DynamicCache(config=self._model.config).layers
        rope = getattr(self._model.config, "rope_parameters", None) or {}
        steady = rope.get("rope_type", "default") not in ("dynamic", "longrope")
        plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
        return plain and steady and "position_ids" in inspect.signature(self._model.forward).parameters

    def _run(self, ids: list[int], held: int, offset: int, keep: int, cache: Any) -> Array:
        """The last `keep` logits of `ids` after `held` tokens."""
        parameters = inspect.signature(self._model.forward).parameters
        name = "cache" if "cache" in parameters else "past_key_values"
        arguments: dict[str, Any] = {"input_ids": torch.tensor([ids]), name: cache, "use_cache": True}
        if offset:
            arguments["position_ids"] = torch.arange(held, held + len(ids))[None] + offset
        if "logits_to_keep" in parameters:
            arguments["logits_to_keep"] = keep
        logits: Array = self._model(**arguments).logits[0, -keep:].float().numpy()
        return logits


def _held(layer: Any, half: str) -> Array:
    """What a layer's cache holds of the first row; nothing of a layer that has a state in the place of keys."""
    tensor = getattr(layer, half, None)
    return np.zeros(0, np.float32) if tensor is None else tensor[0].float().numpy()


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


def reference_greedy(
    source: Path | Checkpoint, prompts: Sequence[Sequence[int] | Question], steps: int
) -> list[Golden]:
    """Golden continuations of several prompts, given as token ids or as questions. The model is released afterwards."""
    checkpoint = read_checkpoint(source) if isinstance(source, Path) else source
    reference = Reference(checkpoint)
    asked = [prompt if isinstance(prompt, Question) else Question(prompt) for prompt in prompts]
    if is_large(checkpoint) and reference.takes_rows and all(question.known is None for question in asked):
        return reference.together(asked, steps)
    return [reference.greedy(question, steps) for question in asked]
