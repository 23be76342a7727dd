# SPDX-License-Identifier: Apache-2.0
"""What guesses tokens: the text itself, a smaller model, or a head that reads what the model computed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from genai_bundle.manifest import Draft

from .backends.base import Array
from .body import Body
from .values import Value

MOST = 15
"""Guesses that one run can check."""


@dataclass
class Rate:
    """How often guesses of one kind were right; what is long past counts less."""

    right: float
    wrong: float
    first: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.right, self.wrong

    @property
    def value(self) -> float:
        return self.right / (self.right + self.wrong)

    def judge(self, right: int, wrong: int) -> None:
        self.right, self.wrong = 0.9 * self.right + right, 0.9 * self.wrong + wrong

    def relax(self) -> None:
        """Guesses that were not made: after many of them the next one is tried again."""
        self.right += 0.01 * (self.first[0] - self.right)
        self.wrong += 0.01 * (self.first[1] - self.wrong)


class Drafter(Protocol):
    """Guesses tokens. `seconds`: what one guess costs."""

    seconds: float

    def rate(self, tokens: Sequence[int]) -> Rate | None:
        """How right guesses such as those behind `tokens` were; None where it has none."""
        ...

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that may follow `tokens`, for which `rate` was asked just before."""
        ...

    def saw(self, start: int, count: int, values: Mapping[str, Value]) -> None:
        """The body ran over `count` tokens of the text, the first of them at `start`; `values` has what it computed."""
        ...


class Lookup:
    """Guesses that a text goes on as it did where its last few tokens stood before: good at copies and repetitions."""

    LENGTHS = (4, 3, 2)
    """Of what is looked for, the longest first: the longer, the more often right."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> where it last ended, but for the end of the text
        self._rates = {4: Rate(2.0, 1.0), 3: Rate(1.0, 1.0), 2: Rate(0.5, 1.0)}
        self._start = 0

    def rate(self, tokens: Sequence[int]) -> Rate | None:
        self._read(tokens)
        for length in self.LENGTHS:
            end = self._ends.get(tuple(tokens[-length:])) if len(tokens) > length else None
            if end is not None:
                self._start = end
                return self._rates[length]
        return None

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """What stands where the match ends; where the text ends within it, it goes on as a repetition."""
        period = len(tokens) - self._start
        return [tokens[self._start + place % period] for place in range(count)]

    def saw(self, start: int, count: int, values: Mapping[str, Value]) -> None:
        """The text says all."""

    def _read(self, tokens: Sequence[int]) -> None:
        if self._tokens != tokens[: len(self._tokens)]:  # the text was rewound
            self._tokens, self._ends = [], {}
        for end in range(max(1, len(self._tokens)), len(tokens)):  # an n-gram is known once something follows it
            for length in self.LENGTHS:
                if end >= length:
                    self._ends[tuple(tokens[end - length : end])] = end
        self._tokens = list(tokens)


class Model:
    """Guesses by the bundle's own draft: a smaller model with states of its own."""

    def __init__(self, body: Body) -> None:
        self._body, self._held = body, list[int]()
        self._rate = Rate(2.0, 1.0)
        self.seconds = 0.0

    def rate(self, tokens: Sequence[int]) -> Rate | None:
        return self._rate if self._room(tokens) > 0 else None

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        guesses, fresh = list[int](), self._go_back(tokens)
        began, known = time.perf_counter(), len(fresh) <= MOST + 2
        for _ in range(min(count, self._room(tokens))):
            guesses.append(self._next(fresh))
            fresh = guesses[-1:]
        if known and guesses:  # the first time, the draft reads all of the prompt
            self.seconds = (time.perf_counter() - began) / len(guesses)
        return guesses

    def saw(self, start: int, count: int, values: Mapping[str, Value]) -> None:
        """It has states of its own."""

    def _room(self, tokens: Sequence[int]) -> int:
        """The guesses that the draft's context has room for."""
        bounds = [group.capacity for group in self._body.states if group.capacity and group.spec.tokens]
        return min([MOST, *(bound - len(tokens) for bound in bounds)])

    def _go_back(self, tokens: Sequence[int]) -> list[int]:
        """Keep what the states hold of `tokens`; what they lack is returned, at least the last token."""
        same = 0
        for held, token in zip(self._held, tokens[:-1], strict=False):
            if held != token:
                break
            same += 1
        if same < len(self._held):
            self._body.rewind(len(self._held) - same)
            self._held = self._held[:same]
        return list(tokens[same:])

    def _next(self, ids: Sequence[int]) -> int:
        logits = self._body.compute(ids)
        self._held += ids
        return int(np.argmax(logits))


class Head(Model):
    """Guesses by a draft that reads what the body computed, or the draft itself, at the position before each id.

    Its states hold the tokens behind the first position that the body was seen to compute. What it computed behind its
    own guesses is forgotten after each: the body, when it checks them, computes the values that count.
    """

    def __init__(self, body: Body, draft: Draft) -> None:
        super().__init__(body)
        self._carry = draft.carry
        self._begin = 0  # the states hold the tokens behind this one
        self._start = self._end = 0  # positions of which values are kept
        self._values: dict[str, list[Array]] = {name: [] for name in self._carry}  # [1, n, ..] of consecutive runs

    def rate(self, tokens: Sequence[int]) -> Rate | None:
        known = self._start < len(tokens) - 1 <= self._end
        return super().rate(tokens) if known else None

    def saw(self, start: int, count: int, values: Mapping[str, Value]) -> None:
        fresh = {name: np.asarray(values[given]) for name, (given, _) in self._carry.items()}
        least = min(array.shape[1] for array in fresh.values())
        start, end = start + max(0, count - least), start + count
        if not self._start < start <= self._end:  # nothing of what is kept stands right before it
            self._start, self._values = start, {name: [] for name in self._carry}
        elif start < self._end:
            self._values = {name: [_joined(held)[:, : start - self._start]] for name, held in self._values.items()}
        for name, array in fresh.items():
            self._values[name].append(array[:, array.shape[1] - (end - start) :])
        self._end = end

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        fresh = self._go_back(tokens)
        known, began, first = len(fresh) <= MOST + 2, time.perf_counter(), len(tokens) - 1 - len(fresh)
        span = slice(first - self._start, len(tokens) - 1 - self._start)
        along = {name: _joined(pieces)[:, span] for name, pieces in self._values.items()}
        guesses, held = list[int](), len(self._held) + len(fresh)
        for _ in range(min(count, self._room(tokens))):
            logits, computed = self._body.follow(fresh, along)
            self._held += fresh
            guesses.append(int(np.argmax(logits)))
            along = {name: np.asarray(computed[own])[:, -1:] for name, (_, own) in self._carry.items()}
            fresh = guesses[-1:]
        self._body.rewind(len(self._held) - held)
        self._held = self._held[:held]
        self._start = self._end = len(tokens) - 1  # what comes next, the body computes
        self._values = {name: [] for name in self._carry}
        if known:
            self.seconds = (time.perf_counter() - began) / len(guesses)
        return guesses

    def _go_back(self, tokens: Sequence[int]) -> list[int]:
        """As a model does, of the tokens that it reads; from where values are known, if it lacks some before."""
        fresh = super()._go_back(tokens[self._begin + 1 :])
        if fresh and self._begin <= self._start <= len(tokens) - 1 - len(fresh):
            return fresh
        self._body.rewind(len(self._held))
        self._held, self._begin = [], self._start
        return list(tokens[self._start + 1 :])


def _joined(pieces: Sequence[Array]) -> Array:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
