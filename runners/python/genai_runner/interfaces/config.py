# SPDX-License-Identifier: Apache-2.0
"""What a request may choose, in the words of the ONNX working group on generative AI.

The names and defaults are those of its proposal (onnx/working-groups, generative-ai/genai-interfaces). Where that says
"the largest number there is" for "no bound" or "off", Python says None. docs/interfaces.md has a table of what each
engine makes of each field.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from genai_bundle.errors import UsageError


class StopCriteria(Enum):
    """When a search with beams ends: with `num_beams` whole answers, when better ones are unlikely, or impossible."""

    EARLY = "early"
    HEURISTIC = "heuristic"
    NEVER = "never"


@dataclass(slots=True)
class SamplingConfig:
    """How the next token is chosen. Without `do_sample` it is the likeliest, whatever seed, temperature and filters."""

    do_sample: bool = False
    rng_seed: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(slots=True)
class BeamSearchConfig:
    """A search for likely answers, and how many of them are returned."""

    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    no_repeat_ngram_size: int | None = None
    stop_criteria: StopCriteria = StopCriteria.HEURISTIC


@dataclass(slots=True)
class GenerationConfig:
    """Bounds, ends and the two ways to choose. `max_length` counts the prompt too; of two bounds the lesser holds."""

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    eos_token_ids: set[int] = field(default_factory=set)
    stop_strings: set[str] = field(default_factory=set)
    sampling_config: SamplingConfig = field(default_factory=SamplingConfig)
    beam_search_config: BeamSearchConfig = field(default_factory=BeamSearchConfig)

    @property
    def several(self) -> bool:
        """Whether more than one answer is kept in mind."""
        return self.beam_search_config.num_beams > 1 or self.beam_search_config.num_return_sequences > 1

    def copy(self) -> GenerationConfig:
        return copy.deepcopy(self)

    def check(self) -> None:
        """Raise UsageError for a value out of its range, and for fields that do not go together."""
        for part in (self, self.sampling_config, self.beam_search_config):
            for name, (expected, holds) in _RULES.items():
                if hasattr(part, name) and not _holds(holds, getattr(part, name)):
                    raise UsageError(f"{name} is {getattr(part, name)!r}, but it takes {expected}", where=name)
        self._check_beams()

    def _check_beams(self) -> None:
        beams, sampling = self.beam_search_config, self.sampling_config
        if beams.num_beams == 1:
            neutral = BeamSearchConfig()
            for name in ("num_beam_groups", "diversity_penalty", "length_penalty", "stop_criteria"):
                if getattr(beams, name) != getattr(neutral, name):
                    _refuse(name, "is for beams, and num_beams is 1")
            if beams.num_return_sequences > 1 and not sampling.do_sample:
                _refuse("num_return_sequences", "above 1 would give the same text again", "Sample, or give num_beams")
            return
        if sampling.do_sample:
            _refuse("num_beams", "does not go with do_sample")
        if beams.num_beams % beams.num_beam_groups:
            _refuse("num_beam_groups", f"is {beams.num_beam_groups}, which does not divide {beams.num_beams} beams")
        if beams.diversity_penalty and beams.num_beam_groups == 1:
            _refuse("diversity_penalty", "is for groups of beams, and num_beam_groups is 1")
        if beams.num_beam_groups > 1 and not beams.diversity_penalty:
            _refuse("diversity_penalty", "is 0, so the groups of beams would all be the same")
        if beams.num_return_sequences > beams.num_beams:
            _refuse("num_return_sequences", f"is {beams.num_return_sequences}, and there are {beams.num_beams} beams")


def bundle_config(generation: Mapping[str, Any], eos: Any) -> GenerationConfig:
    """What a bundle's own defaults and ending ids say in these words."""
    sampling = SamplingConfig(
        do_sample=generation.get("temperature", 0) > 0,
        rng_seed=generation.get("seed", 0),
        temperature=float(generation.get("temperature") or 1.0),
        top_k=generation.get("top_k") or None,
        top_p=float(generation.get("top_p", 1.0)),
        repetition_penalty=float(generation.get("repetition_penalty", 1.0)),
    )
    return GenerationConfig(
        max_new_tokens=generation.get("max_tokens"),
        min_new_tokens=generation.get("min_tokens", 0),
        eos_token_ids=set(eos),
        stop_strings=set(generation.get("stop", ())),
        sampling_config=sampling,
        beam_search_config=BeamSearchConfig(no_repeat_ngram_size=generation.get("no_repeat_ngram_size") or None),
    )


SAID = frozenset(
    {"max_tokens", "min_tokens", "stop", "temperature", "seed", "top_k", "top_p", "repetition_penalty"}
    | {"no_repeat_ngram_size"}
)
"""The bundle's defaults that a GenerationConfig has a field for."""


def _refuse(name: str, problem: str, hint: str | None = None) -> None:
    raise UsageError(f"{name} {problem}", where=name, hint=hint)


def _holds(holds: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(holds(value))
    except (TypeError, ValueError):
        return False


def _whole(least: int, most: float = math.inf, *, none: bool = False) -> Callable[[Any], bool]:
    return lambda v: (none and v is None) or (type(v) is int and least <= v < most)


def _number(least: float, most: float = math.inf, *, above: bool = False) -> Callable[[Any], bool]:
    return lambda v: type(v) in (int, float) and least <= v <= most and math.isfinite(v) and not (above and v == least)


_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "max_length": ("an integer of 1 or more, or None", _whole(1, none=True)),
    "max_new_tokens": ("an integer of 0 or more, or None", _whole(0, none=True)),
    "min_new_tokens": ("an integer of 0 or more", _whole(0)),
    "eos_token_ids": ("a set of ids of 0 or more", lambda v: not isinstance(v, str) and all(map(_whole(0), v))),
    "stop_strings": (
        "a set of strings, none empty",
        lambda v: not isinstance(v, str) and all(isinstance(one, str) and one for one in v),
    ),
    "do_sample": ("True or False", lambda v: isinstance(v, bool)),
    "rng_seed": ("an integer from 0 to 2^64-1", _whole(0, 1 << 64)),
    "temperature": ("a number above 0; do_sample=False for the likeliest token", _number(0, above=True)),
    "top_k": ("an integer of 1 or more, or None", _whole(1, none=True)),
    "top_p": ("a number from 0 to 1", _number(0, 1)),
    "repetition_penalty": ("a number above 0", _number(0, above=True)),
    "num_beams": ("an integer of 1 or more", _whole(1)),
    "num_beam_groups": ("an integer of 1 or more", _whole(1)),
    "diversity_penalty": ("a number of 0 or more", _number(0)),
    "length_penalty": ("a number", _number(-math.inf)),
    "num_return_sequences": ("an integer of 1 or more", _whole(1)),
    "no_repeat_ngram_size": ("an integer of 1 or more, or None", _whole(1, none=True)),
    "stop_criteria": ("one of StopCriteria", lambda v: isinstance(v, StopCriteria)),
}
