# SPDX-License-Identifier: Apache-2.0
"""What a request gives: its pieces as they come, the whole result, and figures about it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

from .graph_run import Cancelled
from .interpreter import Request
from .metrics import Metrics
from .placement import Placement
from .program import Program
from .replies import Reply, ReplyFormat, ReplyStream
from .sequences import Sequence
from .values import Emission, Value

CANCELLED = "cancelled"
"""The finish reason of a request that its caller ended."""


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
    """Times of one request in seconds: to the first token (or output, where there are none), and in all; tokens a
    second after the first token.

    `graphs`: what each graph ran on, and how exactly. `metrics`: everything else, see metrics.py.
    """

    ttft_s: float
    total_s: float
    tokens_per_s: float
    graphs: Mapping[str, Placement] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)


@dataclass(frozen=True, slots=True)
class Result:
    """What one request gave.

    text: the text output, "" where the pipeline has none. tokens: new ids, the ending one included.
    finish_reason: "stop" when the pipeline ended by itself, "length" when a bound ended it,
    "cancelled" when the caller did: then all else is what there was until then.
    outputs: every declared output: ndarray, str or bytes; None for one that was never emitted.
    sequences: all answers, best first where they were chosen by a score; text, tokens and finish_reason are those of
    the first.
    reply: the parts of the text, where the bundle has a chat template: content, reasoning, calls of tools; that of
    the first of the sequences.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    outputs: Mapping[str, Value]
    usage: Usage
    stats: Stats
    sequences: list[Sequence] = field(default_factory=list)
    reply: Reply | None = None

    @property
    def metrics(self) -> Metrics:
        """What the request cost."""
        return self.stats.metrics


def placements(program: Program) -> dict[str, Placement]:
    """How each graph was loaded."""
    return {name: loaded.place for name, loaded in program.graphs.items()}


class Stream(Iterator[Value]):
    """Pieces of one output as they come: str of a text, arrays otherwise. `result` is set once it is exhausted.

    An interrupt (Ctrl-C) goes on to the caller, who still finds in `result` what there was until then.
    """

    def __init__(
        self, request: Request, emissions: Iterator[Emission], output: str, text: str | None, *, elsewhere: bool = False
    ) -> None:
        self._request, self._output, self._text = request, output, text
        self._elsewhere = elsewhere  # another thread runs the request, and ends `emissions` where it is cancelled
        self._emissions = emissions
        self._first: float | None = None
        self._ended: Result | Exception | None = None

    def cancel(self) -> None:
        """End the request after what a graph is just computing. From any thread, or from a signal handler."""
        self._request.cancelled.set()

    def __next__(self) -> Value:
        try:
            while self._goes_on and (emission := next(self._emissions, None)) is not None:
                self._first = self._first or time.perf_counter()
                self._request.collect(emission)
                if emission.output == self._output:
                    return emission.value
        except Cancelled:
            pass
        except Exception as error:
            self._ended = error
            self._request.release()
            raise
        except BaseException:
            self._request.cancelled.set()
            self._end()
            raise
        self._end()
        raise StopIteration

    def replies(self) -> Iterator[Reply]:
        """What the pieces of a text add to the answer's parts, in the place of the pieces."""
        codec, ids = self._request.program.text, list[int]()
        if codec is None or not codec.special_ids(codec.form.delimiters):
            parts = ReplyStream(codec.form if codec else ReplyFormat())
            for piece in self:
                yield parts.push(str(piece))
            yield parts.flush()
            return
        parts, texts = ReplyStream(codec.form), codec.stream(self._request.options.stop, codec.form.delimiters)
        for _ in self:
            new = self._request.emitted_tokens(len(ids))
            ids += new
            yield parts.push("".join(map(texts.push, new)))
        rest = "".join(map(texts.push, self.result.tokens[len(ids) :])) + texts.flush()
        yield parts.push(rest) + parts.flush()

    @property
    def _goes_on(self) -> bool:
        return self._elsewhere or not self._request.cancelled.is_set()

    @property
    def result(self) -> Result:
        """The whole result; reads the stream to its end first. Raises what the request failed with."""
        for _ in self:
            pass
        if isinstance(self._ended, Exception):
            raise self._ended
        assert self._ended is not None
        return self._ended

    def _end(self) -> None:
        """Set the result, once, and let go of all that the request held."""
        if self._ended is not None:
            return
        request = self._request
        if request.cancelled.is_set():
            request.finish_reason = CANCELLED
        if isinstance(self._emissions, Generator):
            self._emissions.close()
        outputs, tokens = request.outputs(), request.new_tokens
        text, reason = outputs.get(self._text or "") or "", request.finish_reason
        codec = request.program.text
        logprobs = None if request.options.logprobs is None else tuple(request.logprobs)
        sequences = request.sequences or [Sequence(text, list(tokens), reason, logprobs)]
        if codec is not None and codec.template is not None:
            stop = request.options.stop
            sequences = [replace(one, reply=codec.reply(one.tokens, one.text, stop)) for one in sequences]
        usage = Usage(request.prompt_tokens, sum(len(one.tokens) for one in sequences))
        found = request.record.metrics(usage.prompt_tokens, self._first, usage.completion_tokens)
        times = (
            found.time_to_first_token_seconds,
            found.e2e_request_latency_seconds,
            found.generation_tokens_per_second,
        )
        self._ended = Result(
            text=text,
            tokens=list(tokens),
            finish_reason=reason,
            outputs=outputs,
            usage=usage,
            stats=Stats(*times, placements(request.program), found),
            sequences=sequences,
            reply=sequences[0].reply,
        )
        request.release()
        request.record.finish(found, request.finish_reason)
