# SPDX-License-Identifier: Apache-2.0
"""What a request cost, by the names that others have given such figures.

A `Recorder` belongs to one request and only notes times: two clock readings and a list item for each token. `Metrics`
makes figures of them when the request has ended. Its fields are called as vLLM calls them, in seconds; its `get_`
methods as OpenVINO GenAI's PerfMetrics, in milliseconds.

Times are the request's own: where its tokens are pulled one by one, what the caller does between them is part of them.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .trace import Event, Trace

PERCENTILES = (50, 90, 99)

_numbers = itertools.count(1)


class MeanStd(NamedTuple):
    """Mean and standard deviation, as OpenVINO GenAI returns what it measures more than once."""

    mean: float
    std: float


class Recorder:
    """The times of one request, noted as it runs. Tokens that need no computing are counted by whoever saves them:
    `cached_tokens` of the prompt, `draft_tokens` proposed and `accepted_tokens` of them."""

    def __init__(self, trace: Trace | None = None, load_s: float = 0.0) -> None:
        self.number, self._trace, self._load_s = next(_numbers), trace, load_s
        self._begin()

    def _begin(self) -> None:
        self.began = self.admitted = time.perf_counter()
        self.tokens: list[float] = []  # when each new token was there
        self.inference: list[float] = []  # seconds that the graphs had run until then
        self.inference_s = self.prefill_s = 0.0
        self.prefill_tokens = self.cached_tokens = self.draft_tokens = self.accepted_tokens = 0
        if self._trace:
            self._trace(Event("began", self.number, self.began))

    def admit(self) -> None:
        """A request that waited in a queue begins to run."""
        self.admitted = time.perf_counter()

    def turn(self) -> None:
        """More prompt was appended: what follows is measured from here, as a request of its own."""
        if self.tokens:
            self._begin()

    def graph(self, name: str, began: float) -> None:
        """A graph has run since `began`."""
        duration = time.perf_counter() - began
        self.inference_s += duration
        if self._trace:
            self._trace(Event("graph", self.number, began, duration, {"graph": name}))

    def prefilled(self, tokens: int, began: float) -> None:
        """Logits are there for pending tokens that were run since `began`. Before the first new token: the prompt."""
        if self.tokens:
            return
        duration = time.perf_counter() - began
        self.prefill_s += duration
        self.prefill_tokens += tokens
        if self._trace:
            self._trace(Event("prefill", self.number, began, duration, {"tokens": tokens}))

    def token(self, token: int) -> None:
        """A new token is there."""
        now = time.perf_counter()
        self.tokens.append(now)
        self.inference.append(self.inference_s)
        if self._trace:
            before = self.tokens[-2] if len(self.tokens) > 1 else now
            self._trace(Event("step", self.number, before, now - before, {"token": token}))

    def metrics(self, prompt_tokens: int, first: float | None = None, new_tokens: int | None = None) -> Metrics:
        """The figures until now. Where tokens do not come one by one, as in a search with beams: `first` is when there
        was an output, and `new_tokens` how many there are."""
        end = time.perf_counter()
        return Metrics(
            prompt_tokens=prompt_tokens,
            generation_tokens=len(self.tokens) if self.tokens else new_tokens or 0,
            time_to_first_token_seconds=(self.tokens[0] if self.tokens else first or end) - self.began,
            inter_token_latencies_seconds=_differences(self.tokens),
            e2e_request_latency_seconds=end - self.began,
            request_queue_time_seconds=self.admitted - self.began,
            request_prefill_time_seconds=self.prefill_s,
            request_decode_time_seconds=self.tokens[-1] - self.tokens[0] if self.tokens else 0.0,
            request_inference_time_seconds=self.inference_s,
            inference_times_seconds=_differences([0.0, *self.inference]),
            prefill_tokens=self.prefill_tokens,
            prefix_cache_hits=self.cached_tokens,
            spec_decode_num_draft_tokens=self.draft_tokens,
            spec_decode_num_accepted_tokens=self.accepted_tokens,
            load_time_seconds=self._load_s,
        )

    def finish(self, metrics: Metrics, reason: str) -> None:
        """The request is at its end."""
        if self._trace:
            details = {"finish_reason": reason, **metrics.as_dict()}
            self._trace(Event("finished", self.number, self.began, metrics.e2e_request_latency_seconds, details))


@dataclass(frozen=True, slots=True)
class Metrics:
    """The figures of one request, in seconds and tokens. Those of a request that made no tokens are zero."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    time_to_first_token_seconds: float = 0.0
    inter_token_latencies_seconds: tuple[float, ...] = ()
    e2e_request_latency_seconds: float = 0.0
    request_queue_time_seconds: float = 0.0
    request_prefill_time_seconds: float = 0.0
    request_decode_time_seconds: float = 0.0
    request_inference_time_seconds: float = 0.0
    inference_times_seconds: tuple[float, ...] = ()
    prefill_tokens: int = 0
    prefix_cache_hits: int = 0
    spec_decode_num_draft_tokens: int = 0
    spec_decode_num_accepted_tokens: int = 0
    load_time_seconds: float = 0.0

    # -- what follows from them, as vLLM names it ---------------------------------------------------------------------

    @property
    def time_per_output_token_seconds(self) -> float:
        """Mean time of the tokens after the first."""
        latencies = self.inter_token_latencies_seconds
        return sum(latencies) / len(latencies) if latencies else 0.0

    @property
    def prefix_cache_queries(self) -> int:
        """Tokens that were looked for in a cache: the prompt's."""
        return self.prompt_tokens

    @property
    def prefix_cache_hit_rate(self) -> float:
        return _ratio(self.prefix_cache_hits, self.prefix_cache_queries)

    @property
    def spec_decode_acceptance_rate(self) -> float:
        return _ratio(self.spec_decode_num_accepted_tokens, self.spec_decode_num_draft_tokens)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens of the prompt that were computed, not taken from a cache, in a second."""
        return _ratio(self.prefill_tokens, self.request_prefill_time_seconds)

    @property
    def generation_tokens_per_second(self) -> float:
        """Tokens after the first in a second; where they came all at once, all of them, the prompt's time left out."""
        if self.inter_token_latencies_seconds or self.generation_tokens < 2:
            return _ratio(1.0, self.time_per_output_token_seconds)
        return _ratio(self.generation_tokens, self.e2e_request_latency_seconds - self.request_prefill_time_seconds)

    def inter_token_latency_seconds(self, percentile: float) -> float:
        """That share of the times between tokens is at most this long; 50: the median."""
        latencies = self.inter_token_latencies_seconds
        return float(np.percentile(latencies, percentile)) if latencies else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Every figure by its name, for JSON."""
        names = ("prompt_tokens", "generation_tokens", "time_to_first_token_seconds", "time_per_output_token_seconds",
                 "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
                 "request_decode_time_seconds", "request_inference_time_seconds", "prefill_tokens_per_second",
                 "generation_tokens_per_second", "prefix_cache_queries", "prefix_cache_hits", "prefix_cache_hit_rate",
                 "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens", "spec_decode_acceptance_rate",
                 "load_time_seconds")  # fmt: skip
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        found["inter_token_latency_seconds"] = {
            f"p{percentile}": self.inter_token_latency_seconds(percentile) for percentile in PERCENTILES
        }
        return {**found, "inter_token_latencies_seconds": list(self.inter_token_latencies_seconds)}

    # -- as OpenVINO GenAI's PerfMetrics names it, in milliseconds ----------------------------------------------------

    def get_load_time(self) -> float:
        return 1e3 * self.load_time_seconds

    def get_num_input_tokens(self) -> int:
        return self.prompt_tokens

    def get_num_generated_tokens(self) -> int:
        return self.generation_tokens

    def get_ttft(self) -> MeanStd:
        """Time to the first token."""
        return MeanStd(1e3 * self.time_to_first_token_seconds, 0.0)

    def get_tpot(self) -> MeanStd:
        """Time per output token, those after the first."""
        return _mean_std(self.inter_token_latencies_seconds)

    def get_ipot(self) -> MeanStd:
        """Time that the graphs ran per output token; the first one's is the prompt's."""
        return _mean_std(self.inference_times_seconds)

    def get_throughput(self) -> MeanStd:
        """Tokens a second, after the first one."""
        mean, std = self.get_tpot()
        return MeanStd(1e3 / mean, 1e3 * std / mean**2) if mean else MeanStd(0.0, 0.0)

    def get_inference_duration(self) -> MeanStd:
        """Time that the graphs ran."""
        return MeanStd(1e3 * self.request_inference_time_seconds, 0.0)

    def get_generate_duration(self) -> MeanStd:
        """The whole request."""
        return MeanStd(1e3 * self.e2e_request_latency_seconds, 0.0)


def peak_memory() -> int | None:
    """The most memory this process has held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _differences(times: Sequence[float]) -> tuple[float, ...]:
    return tuple(after - before for before, after in itertools.pairwise(times))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean_std(seconds: Sequence[float]) -> MeanStd:
    if not seconds:
        return MeanStd(0.0, 0.0)
    return MeanStd(1e3 * float(np.mean(seconds)), 1e3 * float(np.std(seconds)))
