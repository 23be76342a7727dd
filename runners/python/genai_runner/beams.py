# SPDX-License-Identifier: Apache-2.0
"""Beam search, in groups where diversity is asked for. Normative text: spec/runner.md, Beams.

It is transformers' search. Log probabilities are processed as scores are. Candidates that end within the best
`num_beams` are kept with their score over their length to the `length_penalty`, and the search ends by the rules of
`early_stopping`. Groups search one after the other at each step, and a token costs `diversity_penalty` for each beam
of the groups before that chose it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .company import Apart, company
from .options import Options
from .processors import Scores, processed
from .sequences import TokenLogprob, log_softmax, logprob_of
from .values import Value

if TYPE_CHECKING:
    from .turns import TurnDecoder

Ends = Callable[[list[int]], bool]
"""Whether new tokens end an answer by themselves."""


@dataclass(frozen=True)
class Found:
    """An answer. `stopped`: it ended by itself, not by its length. `carried`: what its loop carried at its end."""

    tokens: list[int]
    score: float
    stopped: bool
    logprobs: list[TokenLogprob]
    carried: Mapping[str, Value]


@dataclass(frozen=True)
class _Candidate:
    """One token more for a beam: `beam` is its place among those that run."""

    score: float
    beam: int
    token: int


def search(decoder: TurnDecoder, options: Options, eos: Collection[int], ends: Ends) -> list[Found]:
    """The best `n` answers, best first. `decoder` is used up."""
    if decoder.is_done:
        return [Found([], 0.0, stopped=False, logprobs=[], carried=decoder.carried())]
    size = options.num_beams // options.num_beam_groups
    decoder.get_logits()
    others = company(decoder)
    groups = [_Group(options, size, eos, ends, decoder.room, others) for _ in range(options.num_beam_groups)]
    for group in groups[1:]:
        group.begin(others.fork(decoder))
    groups[0].begin(decoder)
    while running := [one for group in groups for _, one in group.running]:
        others.run(running)
        chosen: list[int] = []
        for group in groups:
            chosen += group.step(chosen)
    found = [answer for group in groups for answer in group.found]
    return sorted(found, key=lambda answer: -answer.score)[: options.n]


class _Group:
    """Beams that compete with each other. `running`: with the sum of their log probabilities, best first."""

    def __init__(self, options: Options, size: int, eos: Collection[int], ends: Ends, room: int, others: Apart) -> None:
        self._options, self._size, self._eos, self._ends, self._room = options, size, eos, ends, room
        self._others = others
        self.running: list[tuple[float, TurnDecoder]] = []
        self.found: list[Found] = []  # best first, at most `size`

    def begin(self, decoder: TurnDecoder) -> None:
        self.running = [(0.0, decoder)]

    def step(self, taken: Sequence[int]) -> list[int]:
        """One token more. `taken`: what the groups before this one have chosen; gives what this one did."""
        if not self.running:
            return []
        candidates = self._candidates(taken)
        length = len(self.running[0][1].new_tokens) + 1
        full = length >= self._room
        going: list[_Candidate] = []
        ended: list[Found] = []
        for rank, candidate in enumerate(candidates):
            decoder = self.running[candidate.beam][1]
            stopped = self._ends([*decoder.new_tokens, candidate.token])
            if not stopped:
                going.append(candidate)
            if (stopped or full) and rank < self._size:
                ended.append(self._answer(candidate, stopped, length))
        self._keep(ended)
        going = going[: self._size]
        self._advance([] if full else going)
        if self._is_over(length):
            self.running = []
        return [candidate.token for candidate in going]

    def _candidates(self, taken: Sequence[int]) -> list[_Candidate]:
        """The best continuations of all beams, best first; enough that as many as there are beams do not end."""
        counts = Counter(taken)
        costs = tuple((token, -self._options.diversity_penalty * count) for token, count in counts.items())
        options = replace(self._options, logit_bias=(*self._options.logit_bias, *costs))
        rows = np.stack([score + self._scores(decoder, options) for score, decoder in self.running])
        flat = rows.reshape(-1)
        count = min(max(2, 1 + len(self._eos)) * self._size, flat.size)
        best = np.argpartition(-flat, count - 1)[:count]
        best = best[np.lexsort((best, -flat[best]))]
        width = rows.shape[1]
        return [_Candidate(float(flat[at]), int(at) // width, int(at) % width) for at in best if flat[at] > -np.inf]

    def _scores(self, decoder: TurnDecoder, options: Options) -> Scores:
        """Log probabilities of the next token after all that the options and processors do to them."""
        scores = log_softmax(decoder.get_logits())
        return processed(scores, options, decoder.tokens, decoder.prompt_length, self._eos, decoder.processors)

    def _answer(self, candidate: _Candidate, stopped: bool, length: int) -> Found:
        decoder = self.running[candidate.beam][1]
        logprobs = list(decoder.logprobs)
        if self._options.logprobs is not None:
            logprobs.append(logprob_of(decoder.get_logits(), candidate.token, self._options.logprobs))
        score = candidate.score / length**self._options.length_penalty
        tokens = [*decoder.new_tokens, candidate.token]
        return Found(tokens, score, stopped, logprobs, decoder.carried(candidate.token))

    def _keep(self, ended: Sequence[Found]) -> None:
        self.found = sorted([*self.found, *ended], key=lambda answer: -answer.score)[: self._size]

    def _advance(self, going: Sequence[_Candidate]) -> None:
        """Let the chosen candidates run on: the last one of each beam in the beam itself, the others in forks."""
        uses = Counter(candidate.beam for candidate in going)
        running: list[tuple[float, TurnDecoder]] = []
        for candidate in going:
            parent = self.running[candidate.beam][1]
            uses[candidate.beam] -= 1
            decoder = self._others.fork(parent) if uses[candidate.beam] else parent
            running.append((candidate.score, decoder))
        for candidate, (_, decoder) in zip(going, running, strict=True):
            decoder.accept(candidate.token)
        self.running = running

    def _is_over(self, length: int) -> bool:
        """Whether no beam that runs may still give a better answer; the length is what they have now."""
        if not self.running or len(self.found) < self._size:
            return not self.running
        if self._options.early_stopping is True:
            return True
        never = self._options.early_stopping == "never" and self._options.length_penalty > 0
        reachable = self.running[0][0] / (self._room if never else length) ** self._options.length_penalty
        return bool(reachable <= self.found[-1].score)
