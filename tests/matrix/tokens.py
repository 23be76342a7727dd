# SPDX-License-Identifier: Apache-2.0
"""The tokens of a bundle on every engine, with state inside it or out: they must be the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import genai_runner
from genai_bundle.builder.prove import PORTABLE, forms
from genai_bundle.bundle import open_bundle
from genai_bundle.manifest import Generate

STEPS = 64
PROMPTS = ("a", "Longer than any window here: forty tokens and some more")
"""The tokenizers of the families have a token for each byte."""
SAMPLED: dict[str, Any] = {"max_tokens": 24, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7}
ENGINES = ("openvino", "reference")


def engines(path: Path) -> Iterator[tuple[str, str]]:
    """(backend, variant) of every form that runs here."""
    with open_bundle(path) as bundle:
        yield from ((form.backend, form.variant) for form in forms(bundle.manifest))
    yield from ((name, PORTABLE) for name in ENGINES)


def _generates(path: Path) -> bool:
    with open_bundle(path) as bundle:
        inputs = bundle.manifest.inputs.items()
        prompted = any(one.type == "text" and (name == "prompt" or one.required) for name, one in inputs)
        return prompted and any(isinstance(step, Generate) for step in bundle.manifest.steps)


def generated(path: Path, backend: str, variant: str) -> list[list[int]]:
    """The ids after each prompt, greedy and sampled; an ending token is never taken, so that all are as long."""
    found = []
    with genai_runner.load(path, backend, variant=variant, precision="exact") as pipe:
        ends = list(pipe.manifest.text.eos) if pipe.manifest.text else []
        for prompt in PROMPTS:
            for options in ({"max_tokens": STEPS}, SAMPLED):
                decoder = pipe.generator(prompt, **options)
                for _ in range(decoder.room):
                    logits = decoder.get_logits().copy()
                    logits[ends] = -np.inf
                    decoder.set_logits(logits)
                    decoder.generate_next_token()
                found.append(decoder.new_tokens)
    return found


def token_differences(path: Path) -> list[str]:
    """Where the tokens of a form differ from those of the first one. None for what generates no text."""
    told, first = [], list[list[int]]()
    if not _generates(path):
        return told
    for backend, variant in engines(path):
        tokens = generated(path, backend, variant)
        first = first or tokens
        for number, (got, expected) in enumerate(zip(tokens, first, strict=True)):
            if got != expected:
                step = next(i for i, pair in enumerate(zip(got, expected, strict=True)) if pair[0] != pair[1])
                told.append(f"{backend}, {variant}: text {number} differs from step {step} on")
    return told
