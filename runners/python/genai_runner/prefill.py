# SPDX-License-Identifier: Apache-2.0
"""Compute the states of a fixed prefix once, for `saved_prefixes` to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from genai_bundle.errors import UsageError

from .pipeline import Pipeline
from .prefix_cache import fits
from .saved_prefixes import Prefix

BEHIND = ("A", "b", "1", ".", "é", '"', "\n\nA", " A")
"""Beginnings of what may follow a prefix. Tokens that do not change with it are the prefix's own."""

SHOWN = 48
"""Characters of a prefix that are kept for lists."""


def prefill_system(
    pipe: Pipeline, system: str, *, tools: Sequence[Mapping[str, Any]] | None = None, adapter: str | None = None
) -> Prefix:
    """Keep the states of a system message (and tools) as the chat template writes it before what a user says."""
    inputs = pipe.manifest.inputs
    names = [name for name, declared in inputs.items() if declared.type == "messages"]
    if not names:
        raise UsageError(f"{pipe.manifest.name!r} takes no messages", hint="Give it a plain prompt instead")
    if tools is not None and "tools" not in inputs:
        raise UsageError(f"{pipe.manifest.name!r} takes no tools", hint="Its pipeline has no such input")
    more = {} if tools is None else {"tools": tools}
    first = {"role": "system", "content": system}
    asked = [{names[0]: [first, {"role": "user", "content": said}], **more} for said in BEHIND]
    return _prefill(pipe, asked, adapter, system)


def prefill_prompt(pipe: Pipeline, prompt: str, *, adapter: str | None = None) -> Prefix:
    """Keep the states of the beginning of prompts."""
    name = pipe.prompt_input
    if name is None or pipe.manifest.inputs[name].type != "text":
        raise UsageError(f"{pipe.manifest.name!r} takes no text as its prompt", hint="Give it a system message instead")
    return _prefill(pipe, [{name: prompt + said} for said in BEHIND], adapter, prompt)


def common(sequences: Sequence[Sequence[int]]) -> list[int]:
    """What all begin with."""
    alike = takewhile(lambda ids: len(set(ids)) == 1, zip(*sequences, strict=False))
    return [ids[0] for ids in alike]


def _prefill(pipe: Pipeline, asked: Sequence[Mapping[str, Any]], adapter: str | None, text: str) -> Prefix:
    saved = pipe.saved_prefixes
    if saved is None:
        hint = "It needs an engine that tells its version, and `load` without literal"
        raise UsageError("what this pipeline computes cannot be kept in files", hint=hint)
    ids = common([pipe.generator(**one, adapter=adapter).tokens for one in asked])
    decoder = pipe.generator(**asked[0], adapter=adapter)
    if not fits(decoder.body) or len(decoder.carried()) != 1:
        hint = "Only caches of which every position can be cut off, filled from ids alone, can be kept"
        raise UsageError(f"the states of {pipe.manifest.name!r} cannot be kept for other prompts", hint=hint)
    if not ids or len(ids) == len(decoder.tokens):
        raise UsageError("there is no token that all prompts would begin with", hint="Give a longer prefix")
    decoder.get_logits()
    decoder.rewind_to(len(ids) + 1)  # the states then hold all but that last one
    held = {(group.name, port): array for group in decoder.body.states for port, array in group.save().arrays.items()}
    return saved.save(adapter, ids, held, pipe.manifest.name, " ".join(text.split())[:SHOWN])
