# SPDX-License-Identifier: Apache-2.0
"""Speculation: tokens are guessed cheaply, and one run of the model tells how many of the guesses are right.

Each position is drawn as it would be without guesses, from the same logits with the same random number, so that the
tokens are the same; a guess only decides whether the next logits are there already. Sources: Leviathan et al., "Fast
Inference from Transformers via Speculative Decoding" (2023); Saxena, "Prompt Lookup Decoding" (2023).

How many tokens are guessed at a time follows from what was measured: the time of a run by its width, and how often
guesses were right.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from genai_bundle.errors import UsageError
from genai_bundle.manifest import Generate

from .body import Body

if TYPE_CHECKING:
    from .interpreter import Request, Scope

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Tokens that one run may take: one that is certain, the others guessed."""

NONE, LOOKUP, DRAFT, AUTO = "none", "lookup", "draft", "auto"
MODES = (NONE, LOOKUP, DRAFT, AUTO)


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
        began, known = time.perf_counter(), len(fresh) <= WIDTHS[-1] + 1
        for _ in range(min(count, self._room(tokens))):
            guesses.append(self._next(fresh))
            fresh = guesses[-1:]
        if known and guesses:  # the first time, the draft reads all of the prompt
            self.seconds = (time.perf_counter() - began) / len(guesses)
        return guesses

    def _room(self, tokens: Sequence[int]) -> int:
        """The guesses that the draft's context has room for."""
        bounds = [group.capacity for group in self._body.states if group.capacity and group.spec.tokens]
        return min([WIDTHS[-1], *(bound - len(tokens) for bound in bounds)])

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


class Speculation:
    """One request's guesses: how many to make, and what came of them."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._costs: dict[int, float] = {}  # seconds of a run by its width
        self._width, self._rate = 1, Rate(1.0, 1.0)

    def propose(self, tokens: Sequence[int], most: int, vocabulary: int) -> list[int]:
        """Guesses worth their cost, at most `most`, all below `vocabulary`."""
        if self._width > 1:  # all guesses of the last run came true
            self._rate.judge(self._width - 1, 0)
        self._width = 1
        if 1 not in self._costs:  # what a plain step costs is measured first
            return []
        rate = self._drafter.rate(tokens)
        if rate is None:
            return []
        self._rate, count = rate, self._best(most, rate.value)
        if not count:
            rate.relax()
            return []
        guesses = self._drafter.guess(tokens, count)
        known = next((place for place, guess in enumerate(guesses) if guess >= vocabulary), len(guesses))
        self._width = 1 + known
        return guesses[:known]

    def _best(self, most: int, rate: float) -> int:
        """The number of guesses, at most `most`, with the most tokens for the time."""
        best, speed = 0, 1.0 / self._cost(1)
        for width in WIDTHS[1:]:
            count = width - 1
            if count > most:
                break
            tokens = sum(rate**power for power in range(width))
            found = tokens / (self._cost(width) + count * self._drafter.seconds)
            if found > speed:
                best, speed = count, found
        return best

    def _cost(self, width: int) -> float:
        """Seconds of a run: measured, or between two that were, or a little more than the widest that was."""
        if width in self._costs:
            return self._costs[width]
        below = max(known for known in self._costs if known < width)
        above = min((known for known in self._costs if known > width), default=None)
        if above is None:
            return self._costs[below] * (1 + 0.05 * (width - below))
        share = (width - below) / (above - below)
        return (1 - share) * self._costs[below] + share * self._costs[above]

    def ran(self, seconds: float) -> None:
        """The run over what was proposed took this long. Guesses count as right until they are missed."""
        before = self._costs.get(self._width)
        self._costs[self._width] = seconds if before is None else 0.7 * before + 0.3 * seconds

    def missed(self, count: int, seconds: float) -> None:
        """The last `count` guesses did not come true; forgetting them took this long."""
        self._rate.judge(self._width - 1 - count, 1)
        self._costs[self._width] += 0.3 * seconds
        self._width = 1


def speculation(request: Request, body: Body, step: Generate, scope: Scope, ids: str) -> Speculation | None:
    """What guesses the tokens of one generation; None where the request asks for none.

    Raises UsageError where the model cannot check guesses, or has no draft and the request asks for it.
    """
    mode = request.arguments.speculate
    if mode == NONE or request.options.several or (mode == AUTO and not _possible(body, step)):
        return None
    if not _possible(body, step):
        message = "this model cannot check guessed tokens: its states do not go back, or it gives the last logits only"
        raise UsageError(message, where=step.where, hint=f"Leave speculate out, or let it be {AUTO!r}")
    draft = step.draft
    if mode == DRAFT and draft is None:
        raise UsageError("this bundle has no draft", where=step.where, hint=f"speculate={LOOKUP!r} needs none")
    if draft is None or mode == LOOKUP:
        return Speculation(Lookup())
    small = Body(request, draft.do, draft.logits, scope, ids)
    if not all(group.goes_back for group in small.states):
        raise UsageError("the draft's states do not go back", where=draft.where, hint=f"Use speculate={LOOKUP!r}")
    return Speculation(Model(small))


def _possible(body: Body, step: Generate) -> bool:
    return body.checks and len(step.carry) == 1
