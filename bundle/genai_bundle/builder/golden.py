# SPDX-License-Identifier: Apache-2.0
"""The golden vectors of a checkpoint's bundle: which prompts are asked, and how much of each answer is promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.parity import TOLERANCE
from genai_bundle.builder.reference import Golden, reference_ids
from genai_bundle.errors import SourceError

PROMPTS = ("Once upon a time", "The capital of France is", "1, 2, 3, 4, 5,")
"""A story, a fact, a pattern. Of different length, so that a batch of two needs padding."""

CHAT = ({"role": "user", "content": "What is the capital of France?"},)

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


def golden_tests(prompts: Sequence[Prompt], goldens: Sequence[Golden], eos: Sequence[int]) -> list[dict[str, Any]]:
    """The manifest's `tests`: greedy tokens up to the text's end, or to the first one that leads too narrowly."""
    tests = []
    for prompt, golden in zip(prompts, goldens, strict=True):
        tokens = list(golden.tokens[: golden.sure(MARGIN)])
        end = next((index + 1 for index, token in enumerate(tokens) if token in eos), len(tokens))
        if end == 0:
            continue
        options = {"temperature": 0, "repetition_penalty": 1, "max_tokens": end, "stop": []}
        tests.append({"in": {**prompt.inputs, **options}, "out": {"tokens": [tokens[:end]]}, "compare": "tokens"})
    return tests
