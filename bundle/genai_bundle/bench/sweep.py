# SPDX-License-Identifier: Apache-2.0
"""The sides take turns over contexts and batches. Machines are shared and change their speed: what is compared is
measured one after the other, and a ratio is the median of the rounds' own ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from genai_bundle.bench import Times
from genai_bundle.bench.child import Child, check_runs

Report = Callable[[str], None]

SETTLE_S = 0.1
"""Between turns: threads of the side before may still spin for a while, in case of more work."""


@dataclass(frozen=True)
class Row:
    """One side at one context and batch; `rounds` are those that count."""

    side: str
    context: int
    batch: int
    rounds: Sequence[Times]

    @property
    def prefill_s(self) -> float:
        """Until the first token."""
        return statistics.median(one.first for one in self.rounds)

    @property
    def step_s(self) -> float:
        """A token of every sequence."""
        return statistics.median(one for times in self.rounds for one in times.steps)

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.context * self.batch / self.prefill_s

    @property
    def tokens_per_s(self) -> float:
        return self.batch / self.step_s

    def as_dict(self) -> dict[str, Any]:
        return {
            "side": self.side, "context": self.context, "batch": self.batch,
            "prefill_s": self.prefill_s, "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "step_s": self.step_s, "tokens_per_s": self.tokens_per_s,
            "rounds": [{"first_s": one.first, "steps_s": list(one.steps)} for one in self.rounds],
        }  # fmt: skip


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the peer ours is; above 1, ours is faster."""

    ours: str
    peer: str
    context: int
    batch: int
    prefill: float
    decode: float


@dataclass(frozen=True)
class Found:
    """Of all sides, `ours` among them: what they are and took (`facts`, by name), the rows, why one is missing."""

    facts: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Row]
    left_out: Sequence[str] = ()
    ours: Sequence[str] = ()

    def memory(self, side: str) -> float | None:
        """The most that was resident, over the least of ours; None where the system does not say."""
        sizes = {name: one["peak_rss_bytes"] for name, one in self.facts.items()}
        least = min((sizes[name] or 0 for name in self.ours), default=0)
        return sizes[side] / least if least and sizes[side] else None

    def ratios(self) -> Iterator[Ratio]:
        """The best of ours against each other side, at each context and batch."""
        for row in self.rows:
            if row.side in self.ours:
                continue
            place = row.context, row.batch
            own = [one for one in self.rows if one.side in self.ours and (one.context, one.batch) == place]
            if own:
                quick = min(own, key=lambda one: one.step_s)
                eager = min(own, key=lambda one: one.prefill_s)
                prefill = statistics.median(b.first / a.first for a, b in zip(eager.rounds, row.rounds, strict=True))
                decode = statistics.median(
                    statistics.median(b.steps) / statistics.median(a.steps)
                    for a, b in zip(quick.rounds, row.rounds, strict=True)
                )
                yield Ratio(quick.side, row.side, row.context, row.batch, prefill, decode)


def together(parts: Sequence[Found]) -> Found:
    """Several sweeps of the same sides as one: the rounds of all of them, and the first's facts."""
    rows = {(row.side, row.context, row.batch): row for row in parts[0].rows}
    left_out = dict.fromkeys(reason for part in parts for reason in part.left_out)
    for part in parts[1:]:
        more = {(row.side, row.context, row.batch): row for row in part.rows}
        rows = {
            place: replace(row, rounds=[*row.rounds, *more[place].rounds])
            for place, row in rows.items()
            if place in more
        }
    return Found(parts[0].facts, list(rows.values()), tuple(left_out))


def sweep(
    children: Sequence[Child],
    prompts: Mapping[int, Sequence[int]],
    batches: Sequence[int],
    steps: int,
    rounds: int,
    report: Report,
) -> Found:
    """Run all sides on the prompts, by length. One round more warms up and does not count."""
    rows, left_out = [], []
    for context, ids in prompts.items():
        for batch in batches:
            able = list(children)
            times: dict[str, list[Times]] = {child.side.name: [] for child in able}
            for turn in range(rounds + 1):
                for child in list(able):
                    name = child.side.name
                    report(f"{name}, {context} tokens, batch {batch}, round {turn} of {rounds}")
                    time.sleep(SETTLE_S)
                    try:
                        found = check_runs(child.run(ids, steps, batch), steps, child.side)
                    except Exception as error:
                        if batch == 1:
                            raise
                        left_out.append(f"{name} at batch {batch}: {error}")
                        able.remove(child)
                        continue
                    if turn:
                        times[name].append(found)
            rows += [Row(child.side.name, context, batch, times[child.side.name]) for child in able]
    facts = {child.side.name: {**child.facts, **child.memory()} for child in children}
    return Found(facts, rows, tuple(dict.fromkeys(left_out)))
