# SPDX-License-Identifier: Apache-2.0
"""The golden vectors of a checkpoint's bundle: which prompts are asked, and how much of each answer is promised.

And what is asked for the proof alone: texts that go beyond an attention window, and positions at the context's end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from genai_bundle.builder.checkpoint import UNLIMITED, Checkpoint, plain_request, text_config
from genai_bundle.builder.fast import fast_bound
from genai_bundle.builder.parity import TOLERANCE
from genai_bundle.builder.reference import Golden, Question, reference_ids
from genai_bundle.errors import SourceError

PROMPTS = ("Once upon a time", "The capital of France is", "1, 2, 3, 4, 5,")
"""A story, a fact, a pattern. Of different length, so that a batch of two needs padding."""

CHAT = ({"role": "user", "content": "What is the capital of France?"},)

_BEYOND = 8
"""Tokens of a prompt that must lie beyond a window."""

MARGIN = 2 * TOLERANCE
"""A golden token must lead by this much: two logits may each be off by TOLERANCE without changing it."""


@dataclass(frozen=True)
class Prompt:
    """Inputs of the bundle's pipeline, and the token ids that they stand for."""

    inputs: Mapping[str, Any]
    ids: tuple[int, ...]


def golden_prompts(checkpoint: Checkpoint, steps: int) -> list[Prompt]:
    """The prompts that leave room for `steps` tokens in the context; with a chat template, a conversation too.

    Raises:
        SourceError: tokenizer.json encodes a prompt otherwise than transformers does with the whole folder.
    """
    tokenizer = Tokenizer.from_str(checkpoint.text.tokenizer.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = []
    for text in PROMPTS:
        ids = tokenizer.encode(text).ids
        expected = reference_ids(checkpoint.path, {"prompt": text})
        if expected is not None and ids != expected:
            raise SourceError(
                f"encodes {text!r} as {ids}, but transformers as {expected}", where="tokenizer.json",
                hint="Save the tokenizer once with AutoTokenizer.from_pretrained(...).save_pretrained(...)",
            )  # fmt: skip
        found.append(Prompt({"prompt": text}, tuple(ids)))
    template = checkpoint.text.template
    if template is not None and "strftime_now" not in template:  # such a conversation is another one every day
        rendered = reference_ids(checkpoint.path, {"messages": list(CHAT)})
        found += [] if rendered is None else [Prompt({"messages": list(CHAT)}, tuple(rendered))]
    usable = [prompt for prompt in found if 0 < len(prompt.ids) <= checkpoint.context - steps]
    if not usable:
        raise SourceError(f"gives no tokens for {PROMPTS[0]!r} that fit the context", where="tokenizer.json")
    return usable


def window(config: Mapping[str, Any]) -> int | None:
    """The longest window of tokens that a layer of the model looks at, None where all layers see the whole text."""
    text = text_config(config)
    lengths = [text.get("sliding_window") if text.get("use_sliding_window", True) else None]
    lengths.append(text.get("attention_chunk_size"))
    return max((length for length in lengths if type(length) is int and length > 0), default=None)


def turn(config: Mapping[str, Any]) -> int | None:
    """The length of a text at which the model's rotary embedding changes all of its frequencies, if it does so."""
    text = text_config(config)
    found = [text.get(key) for key in ("rope_parameters", "rope_scaling")]
    found += [inner for outer in found if isinstance(outer, Mapping) for inner in outer.values()]
    for rope in [rope for rope in found if isinstance(rope, Mapping)]:
        kind = rope.get("rope_type", rope.get("type"))
        if kind == "dynamic":
            return int(text["max_position_embeddings"])
        if kind in ("longrope", "su"):
            places = (rope, text)
            keys = ("original_max_position_embeddings", "max_position_embeddings")
            return next((place[key] for key in keys for place in places if type(place.get(key)) is int), None)
    return None


def questions(checkpoint: Checkpoint, prompts: Sequence[Prompt], steps: int) -> dict[str, Question]:
    """What is asked for the proof alone, by the name of the check.

    A text beyond the longest window, where no prompt with its steps is one; a prompt at the context's last positions;
    and one that passes the length at which frequencies change, step by step.
    """
    ids = max((prompt.ids for prompt in prompts), key=len)
    room = checkpoint.context - steps - len(ids)
    found = {}
    span, change = window(checkpoint.config), turn(checkpoint.config)
    if span is not None and len(ids) < span + _BEYOND and span < checkpoint.context - steps:
        count = min(span + 2 * _BEYOND, checkpoint.context - steps)
        # Of the model's own vocabulary, without order: in a text that repeats itself a window would hide less.
        text = np.random.default_rng(7).integers(checkpoint.text.largest_id + 1, size=count).tolist()
        found["a text beyond the attention window"] = Question(text, known=_BEYOND)
    if checkpoint.context < UNLIMITED and room > 0:
        found["last positions of the context"] = Question(ids, offset=room)
    if change is not None and len(ids) < change <= room:
        found["across the change of rotary frequencies"] = Question(ids, offset=change - len(ids) - steps // 2)
    return found


def golden_tests(
    prompts: Sequence[Prompt], goldens: Sequence[Golden], eos: Sequence[int], generation: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The manifest's `tests`: greedy tokens up to the text's end, or to the first one that leads too narrowly."""
    tests = []
    for prompt, golden in zip(prompts, goldens, strict=True):
        tokens = list(golden.tokens[: golden.sure(MARGIN)])
        end = next((index + 1 for index, token in enumerate(tokens) if token in eos), len(tokens))
        if end == 0:
            continue
        test = {
            "in": {**prompt.inputs, **plain_request(generation, end)},
            "out": {"tokens": [tokens[:end]]},
            "compare": "tokens",
        }
        tests.append({**test, "fast": fast_bound(golden.logits)})
    return tests
