# SPDX-License-Identifier: Apache-2.0
"""Compute the states of a fixed prefix once, for `saved_prefixes` to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from genai_bundle.errors import UsageError

from .backends.base import Array
from .pipeline import Pipeline
from .prefix_cache import fits
from .saved_prefixes import Prefix, SavedPrefixes, shown

BEHIND = ("A", "b", "1", ".", "é", '"', "\n\nA", " A")
"""Beginnings of what may follow a prefix. Tokens that do not change with it are the prefix's own."""


CLOSE = {(True, True): 1e-3, (True, False): 1e-2, (False, True): 0.0, (False, False): 0.0}
"""How far states that are computed again may be off, of the largest: floats of more than 16 bits, of 16, others."""


@dataclass(frozen=True, slots=True)
class Computed:
    """What a prefix leaves in the states. `of`: what it is, {system, tools} or {prompt}."""

    of: Mapping[str, Any]
    adapter: str | None
    ids: list[int]
    arrays: Mapping[tuple[str, str], Array]


def prefill_system(
    pipe: Pipeline, system: str, *, tools: Sequence[Mapping[str, Any]] | None = None, adapter: str | None = None
) -> Prefix:
    """Keep the states of a system message (and tools) as the chat template writes it before what a user says."""
    return keep(pipe, compute(pipe, {"system": system, **({} if tools is None else {"tools": tools})}, adapter))


def prefill_prompt(pipe: Pipeline, prompt: str, *, adapter: str | None = None) -> Prefix:
    """Keep the states of the beginning of prompts."""
    return keep(pipe, compute(pipe, {"prompt": prompt}, adapter))


def keep(pipe: Pipeline, computed: Computed) -> Prefix:
    """Write to the user's cache folder."""
    text = shown(computed.of.get("prompt", computed.of.get("system", "")))
    return key_of(pipe).save(computed.adapter, computed.ids, computed.arrays, pipe.manifest.name, text)


def compute(pipe: Pipeline, of: Mapping[str, Any], adapter: str | None = None) -> Computed:
    """The ids that all prompts begin with that begin with `of`, and what they leave in the states."""
    asked = _requests(pipe, of)
    key_of(pipe)
    pipe = pipe.forgetful()
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
    return Computed(of, adapter, ids, held)


def check(pipe: Pipeline, prefix: Prefix, of: Mapping[str, Any]) -> tuple[float | None, str]:
    """Compute a prefix of the same key again: by how much the states differ, None where they do not compare; and what
    is wrong, "" where nothing is."""
    made = compute(pipe, of, prefix.adapter)
    if tuple(made.ids) != prefix.ids:
        return None, f"{made.of} gives {len(made.ids)} ids now, and not the {len(prefix.ids)} that it holds"
    given = prefix.inside or {}
    if given.keys() != made.arrays.keys():
        return None, "it does not hold all states"
    worst, wrong = 0.0, ""
    for place, array in made.arrays.items():
        one, other = (np.asarray(values, np.float64) for values in (array, given[place]))
        difference = float(np.abs(one - other).max(initial=0.0))
        allowed = CLOSE[array.dtype.kind == "f", array.dtype.itemsize > 2] * float(np.abs(one).max(initial=0.0))
        if not difference <= allowed and not wrong:  # NaN is no small difference
            wrong = f"{place[1]} differs by {difference:.3g}, allowed {allowed:.3g}"
        worst = max(worst, difference)
    return worst, wrong


def key_of(pipe: Pipeline) -> SavedPrefixes:
    """The pipeline's saved prefixes, with what their states depend on. UsageError where it has none."""
    if pipe.saved_prefixes is None:
        hint = "It needs an engine that tells its version, and `load` without literal"
        raise UsageError("what this pipeline computes cannot be kept in files", hint=hint)
    return pipe.saved_prefixes


def common(sequences: Sequence[Sequence[int]]) -> list[int]:
    """What all begin with."""
    alike = takewhile(lambda ids: len(set(ids)) == 1, zip(*sequences, strict=False))
    return [ids[0] for ids in alike]


def _requests(pipe: Pipeline, of: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Requests that begin alike and go on in different ways."""
    inputs, own = pipe.manifest.inputs, pipe.manifest.name
    if "prompt" in of:
        name = pipe.prompt_input
        if name is None or inputs[name].type != "text":
            raise UsageError(f"{own!r} takes no text as its prompt", hint="Give it a system message instead")
        return [{name: of["prompt"] + said} for said in BEHIND]
    names = [name for name, declared in inputs.items() if declared.type == "messages"]
    if not names:
        raise UsageError(f"{own!r} takes no messages", hint="Give it a plain prompt instead")
    if "tools" in of and "tools" not in inputs:
        raise UsageError(f"{own!r} takes no tools", hint="Its pipeline has no such input")
    more = {"tools": of["tools"]} if "tools" in of else {}
    first = {"role": "system", "content": of["system"]}
    return [{names[0]: [first, {"role": "user", "content": said}], **more} for said in BEHIND]
