# SPDX-License-Identifier: Apache-2.0
"""What a request gives: its pieces as they come, the whole result, and figures about it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .interpreter import Program, Request
from .placement import Placement
from .values import Emission, Value


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Stats:
    """Times of one request in seconds: to the first emission, and in all; tokens a second after the first token.

    `graphs`: what each graph ran on, and how exactly.
    """

    ttft_s: float
    total_s: float
    tokens_per_s: float
    graphs: Mapping[str, Placement] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What one request gave.

    text: the text output, "" where the pipeline has none. tokens: new ids, the ending one included.
    finish_reason: "stop" when the pipeline ended by itself, "length" when a bound ended it.
    outputs: every declared output: ndarray, str or bytes; None for one that was never emitted.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    outputs: Mapping[str, Value]
    usage: Usage
    stats: Stats


def placements(program: Program) -> dict[str, Placement]:
    """How each graph was loaded."""
    return {name: loaded.place for name, loaded in program.graphs.items()}


class Stream(Iterator[Value]):
    """Pieces of one output as they come: str of a text, arrays otherwise. `result` is set once it is exhausted."""

    def __init__(self, request: Request, emissions: Iterator[Emission], output: str, text: str | None) -> None:
        self._request, self._output, self._text = request, output, text
        self._emissions = emissions
        self._start = time.perf_counter()
        self._first: float | None = None
        self._result: Result | None = None

    def __next__(self) -> Value:
        for emission in self._emissions:
            if self._first is None:
                self._first = time.perf_counter()
            self._request.collect(emission)
            if emission.output == self._output:
                return emission.value
        if self._result is None:
            self._result = self._finish()
        raise StopIteration

    @property
    def result(self) -> Result:
        """The whole result; reads the stream to its end first."""
        for _ in self:
            pass
        assert self._result is not None
        return self._result

    def _finish(self) -> Result:
        end = time.perf_counter()
        first = self._first or end
        request, tokens = self._request, self._request.new_tokens
        rate = (len(tokens) - 1) / (end - first) if len(tokens) > 1 and end > first else 0.0
        outputs = request.outputs()
        return Result(
            text=outputs.get(self._text or "") or "",
            tokens=list(tokens),
            finish_reason=request.finish_reason,
            outputs=outputs,
            usage=Usage(request.prompt_tokens, len(tokens)),
            stats=Stats(first - self._start, end - self._start, rate, placements(request.program)),
        )
