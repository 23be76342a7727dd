# SPDX-License-Identifier: Apache-2.0
"""Forks of one generation, such as beams, that go on together: one run of the model for all, where its graphs allow.

A fork is a row then (rows.py). It costs nothing until the next run, and one copy of a row's states where its original
goes on too; rows of those that ended are written over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .processors import begin

if TYPE_CHECKING:
    from .rows import Rows
    from .turns import TurnDecoder


class Apart:
    """Each runs by itself, when its logits are asked for."""

    def fork(self, decoder: TurnDecoder) -> TurnDecoder:
        """A copy that goes on from here."""
        return decoder.fork()

    def at_once(self, decoders: Sequence[TurnDecoder]) -> Sequence[Sequence[TurnDecoder]]:
        """Which of these had best go on in step with each other: others would only make the first ones wait."""
        return [[one] for one in decoders]

    def run(self, running: Sequence[TurnDecoder]) -> None:
        """Compute the logits behind the last tokens of these; those that are not named will not go on."""

    def remember(self, decoder: TurnDecoder) -> None:
        """Let the prefix cache keep what was computed for one that has ended."""
        decoder.remember()


class Together(Apart):
    """`decoder`, whose tokens are all run, and the forks that come of it. `members`: the one in each row."""

    def __init__(self, rows: Rows, decoder: TurnDecoder) -> None:
        self._rows, self._members = rows, [decoder]
        self._sources: dict[TurnDecoder, int] = {}  # the row that a fork without one goes on from
        rows.add(decoder.hand_over()[0], len(decoder.tokens))

    def fork(self, decoder: TurnDecoder) -> TurnDecoder:
        twin = decoder.fork(states=False)
        self._sources[twin] = self._row(decoder)
        return twin

    def at_once(self, decoders: Sequence[TurnDecoder]) -> Sequence[Sequence[TurnDecoder]]:
        return [decoders]

    def remember(self, decoder: TurnDecoder) -> None:
        if decoder.place[0].prefixes is not None and decoder in self._members:
            decoder.take_back(self._rows.save(self._members.index(decoder)))
            decoder.remember()

    def run(self, running: Sequence[TurnDecoder]) -> None:
        waiting = [one.has_one_pending for one in running]
        if not any(waiting):
            return  # at the beginning, when all know their logits
        assert all(waiting), "what goes on together is in step"
        running[0].check()
        self._arrange(running)
        for one in running:
            begin(one.processors, one.tokens)
        logits = self._rows.run([one.tokens[-1] for one in self._members])
        for one, row in zip(self._members, logits, strict=True):
            one.put(row)

    def _row(self, decoder: TurnDecoder) -> int:
        return self._sources[decoder] if decoder in self._sources else self._members.index(decoder)

    def _arrange(self, running: Sequence[TurnDecoder]) -> None:
        """Give each its row: those that have one keep it, forks take those that are free."""
        old = self._members
        members = [one if one in running else None for one in old]
        for one in running:
            if one not in old:
                source = self._row(one)
                free = source if members[source] is None else members.index(None) if None in members else len(members)
                members[free : free + 1] = [one]
        while None in members:  # more have ended than begun: the last one takes the row
            last = members.pop()
            if last is not None:
                members[members.index(None)] = last
        self._rows.order([self._row(one) for one in members if one is not None])
        self._members = [one for one in members if one is not None]
        self._sources = {}


def company(decoder: TurnDecoder) -> Apart:
    """The way in which forks of a decoder, whose tokens are all run, can go on."""
    from .rows import Rows, joint  # late: they make requests, which come here

    decoder.remember()
    where = decoder.place
    if not decoder.can_join or joint(*where) is not None:
        return Apart()
    return Together(Rows(*where, decoder.record), decoder)
