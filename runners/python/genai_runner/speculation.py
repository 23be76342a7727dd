# SPDX-License-Identifier: Apache-2.0
"""Speculation: tokens are guessed cheaply, and one run of the model tells how many of the guesses are right.

Each position is drawn as it would be without guesses, from the same logits with the same random number, so that the
tokens are the same; a guess only decides whether the next logits are there already. Sources: Leviathan et al., "Fast
Inference from Transformers via Speculative Decoding" (2023); Saxena, "Prompt Lookup Decoding" (2023).

How many tokens are guessed at a time follows from what was measured: the time of a run by its width, and how often
guesses were right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from genai_bundle.errors import UsageError
from genai_bundle.manifest import Generate

from .body import Body
from .drafters import MOST, Drafter, Head, Lookup, Model, Rate
from .values import Value

if TYPE_CHECKING:
    from .interpreter import Request, Scope

WIDTHS = (1, 2, 3, 4, 6, 8, 12, MOST + 1)
"""Tokens that one run may take: one that is certain, the others guessed."""

NONE, LOOKUP, DRAFT, AUTO = "none", "lookup", "draft", "auto"
MODES = (NONE, LOOKUP, DRAFT, AUTO)


class Speculation:
    """One request's guesses: how many to make, and what came of them."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self._costs: dict[int, float] = {}  # seconds of a run by its width
        self._width, self._rate = 1, Rate(1.0, 1.0)

    def propose(self, tokens: Sequence[int], most: int, vocabulary: int) -> list[int]:
        """Guesses worth their cost, at most `most`, all below `vocabulary`."""
        if self._width > 1:  # all guesses of the last run came true
            self._rate.judge(self._width - 1, 0)
        self._width = 1
        if 1 not in self._costs:  # what a plain step costs is measured first
            return []
        rate = self.drafter.rate(tokens)
        if rate is None:
            return []
        self._rate, count = rate, self._best(most, rate.value)
        if not count:
            rate.relax()
            return []
        guesses = self.drafter.guess(tokens, count)
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
            found = tokens / (self._cost(width) + count * self.drafter.seconds)
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


def saw(speculation: Speculation | None, start: int, count: int, values: Mapping[str, Value]) -> int:
    """Tell what guesses, if anything does, what the body computed for `count` tokens of the text, the first of them at
    `start`. Returns the place behind them."""
    if speculation is not None:
        speculation.drafter.saw(start, count, values)
    return start + count


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
    if not draft.carry:
        return Speculation(Model(small))
    body.take(step.do)
    return Speculation(Head(small, draft))


def _possible(body: Body, step: Generate) -> bool:
    return body.checks and len(step.carry) == 1
