# SPDX-License-Identifier: Apache-2.0
"""The request's options: what each takes, and which of them go together. Normative text: spec/runner.md, Options."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from genai_bundle.errors import UsageError

ERROR, SHIFT = "error", "shift"
"""What becomes of a text that is longer than the context."""

Word = str | tuple[int, ...]
"""What must not come: a text, or the ids that it is written with."""


@dataclass(frozen=True)
class Options:
    """What a request may choose. `max_tokens` None: as many as the context takes."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[Word, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    best_of: int | None = None
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    overflow: str = ERROR
    overflow_keep: int = 0

    @property
    def several(self) -> bool:
        """Whether more than one answer is computed."""
        return max(self.n, self.best_of or 1, self.num_beams) > 1

    @staticmethod
    def merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Options:
        """The options of one request: `given` over the bundle's `defaults` over this class's own; None means not given.

        Raises:
            UsageError: an option is unknown, out of its range or at odds with another; the message names it and what
                it takes.
        """
        chosen = {**defaults, **{name: value for name, value in given.items() if value is not None}}
        options = Options(**{name: _checked(name, value) for name, value in chosen.items() if value is not None})
        _check_together(options)
        return options

    def replaced(self, given: Mapping[str, Any]) -> Options:
        """These options with some of them replaced and checked."""
        return Options.merge(asdict(self), given) if given else self


@dataclass(frozen=True)
class _Rule:
    """What one option takes: in words, and as a test on the converted value."""

    expected: str
    convert: Callable[[Any], Any]
    holds: Callable[[Any], bool] = lambda _: True


def _integer(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError
    return operator.index(value.item() if isinstance(value, np.ndarray) else value)


def _number(value: Any) -> float:
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise TypeError
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return bool(value)


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping) or not all(isinstance(item, str) for item in value):
        raise TypeError
    return tuple(value)


def _words(value: Any) -> tuple[Word, ...]:
    if isinstance(value, str | Mapping):
        return _strings(value)
    return tuple(word if isinstance(word, str) else tuple(_integer(id_) for id_ in word) for word in value)


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    """{id: number}; JSON has texts for keys."""
    pairs: Iterable[Any] = value.items() if isinstance(value, Mapping) else value
    return tuple((int(id_) if isinstance(id_, str) else _integer(id_), _number(bias)) for id_, bias in pairs)


def _stopping(value: Any) -> bool | str:
    return value if isinstance(value, str) else _flag(value)


def _stop_holds(value: tuple[str, ...]) -> bool:
    # U+FFFD is what stands for bytes that are no text (yet): it can never be asked for.
    return all(item and "\ufffd" not in item for item in value)


def _words_hold(value: tuple[Word, ...]) -> bool:
    return all(word and (isinstance(word, str) or min(word) >= 0) for word in value)


def _bias_holds(value: tuple[tuple[int, float], ...]) -> bool:
    return all(id_ >= 0 and math.isfinite(bias) for id_, bias in value)


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: bool(least <= value < math.inf)


_RULES: Mapping[str, _Rule] = {
    "max_tokens": _Rule("an integer of 0 or more", _integer, _at_least(0)),
    "temperature": _Rule("a number of 0 or more", _number, _at_least(0)),
    "top_k": _Rule("an integer of 0 (off) or more", _integer, _at_least(0)),
    "top_p": _Rule("a number from 0 to 1 (off)", _number, lambda v: 0 <= v <= 1),
    "min_p": _Rule("a number from 0 (off) to 1", _number, lambda v: 0 <= v <= 1),
    "typical_p": _Rule("a number from 0 to 1 (off)", _number, lambda v: 0 <= v <= 1),
    "repetition_penalty": _Rule("a number above 0 (1 is off)", _number, lambda v: 0 < v < math.inf),
    "frequency_penalty": _Rule("a finite number (0 is off)", _number, math.isfinite),
    "presence_penalty": _Rule("a finite number (0 is off)", _number, math.isfinite),
    "no_repeat_ngram_size": _Rule("an integer of 0 (off) or more", _integer, _at_least(0)),
    "min_tokens": _Rule("an integer of 0 or more", _integer, _at_least(0)),
    "logit_bias": _Rule("ids of 0 or more with finite numbers, {id: number}", _bias, _bias_holds),
    "bad_words": _Rule("a list of texts and lists of ids, none empty", _words, _words_hold),
    "ignore_eos": _Rule("true or false", _flag),
    "seed": _Rule("an integer from 0 to 2^64-1", _integer, lambda v: 0 <= v < 1 << 64),
    "stop": _Rule("a string or a list of strings, none empty or with U+FFFD", _strings, _stop_holds),
    "logprobs": _Rule("an integer of 0 (the tokens' own) or more", _integer, _at_least(0)),
    "n": _Rule("an integer of 1 or more", _integer, _at_least(1)),
    "best_of": _Rule("an integer of 1 or more", _integer, _at_least(1)),
    "num_beams": _Rule("an integer of 1 (off) or more", _integer, _at_least(1)),
    "num_beam_groups": _Rule("an integer of 1 (off) or more", _integer, _at_least(1)),
    "diversity_penalty": _Rule("a number of 0 (off) or more", _number, _at_least(0)),
    "length_penalty": _Rule("a finite number", _number, math.isfinite),
    "overflow": _Rule("'error' or 'shift'", str, lambda v: v in (ERROR, SHIFT)),
    "overflow_keep": _Rule("an integer of 0 or more", _integer, _at_least(0)),
    "early_stopping": _Rule("true, false or 'never'", _stopping, lambda v: v in (True, False, "never")),
}
OPTIONS = tuple(_RULES)


def _checked(name: str, value: Any) -> Any:
    """The converted value of an option, or UsageError."""
    if (rule := _RULES.get(name)) is None:
        near = difflib.get_close_matches(name, OPTIONS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"The options are {', '.join(OPTIONS)}"
        raise UsageError(f"unknown option {name!r}", hint=hint)
    try:
        converted = rule.convert(value)
        if rule.holds(converted):
            return converted
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(f"{name} is {value!r}, but it takes {rule.expected}", where=f"option {name}")


def _check_together(options: Options) -> None:
    """Raise UsageError for options of which each is fine, but not with the others."""
    n, best_of, beams, groups = options.n, options.best_of, options.num_beams, options.num_beam_groups
    if best_of is not None and best_of < n:
        _refuse("best_of", f"is {best_of}, but n asks for {n}", f"Give {n} or more")
    if beams > 1 and n > beams:
        _refuse("n", f"is {n}, but there are {beams} beams", f"Give num_beams={n} or more")
    if beams > 1 and best_of is not None:
        _refuse("best_of", "does not go with num_beams", "The best n of the beams are what n gives")
    if beams > 1 and options.temperature > 0:
        _refuse("num_beams", f"does not go with the temperature {options.temperature}", "Give temperature=0")
    if beams == 1 and max(n, best_of or 1) > 1 and options.temperature == 0:
        _refuse("n", "above 1 would give the same text again", "Give a temperature, or num_beams")
    if beams % groups:
        _refuse("num_beam_groups", f"is {groups}, which does not divide {beams} beams", "Make the groups equal")
    if options.diversity_penalty and groups == 1:
        _refuse("diversity_penalty", "is for groups of beams, and there is one", "Give num_beam_groups")


def _refuse(name: str, problem: str, hint: str) -> None:
    raise UsageError(f"{name} {problem}", where=f"option {name}", hint=hint)
