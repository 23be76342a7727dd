# SPDX-License-Identifier: Apache-2.0
"""Figures of a request, events of a trace, and requests that end before their time."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genai_runner
from conftest import ROOT
from genai_bundle.errors import BackendError
from genai_runner import metrics
from genai_runner.trace import Event
from runner.tiny import counter


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counter(tmp_path_factory.mktemp("counter") / "counter.genai")


class Clock:
    """time.perf_counter, but moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(metrics, "time", found)
    return found


def recorded(clock: Clock) -> metrics.Recorder:
    """Two seconds in a queue, a prompt of 8 of which 3 were cached, then tokens after 1, 2 and 4 seconds."""
    record = metrics.Recorder(load_s=0.5)
    clock.now += 2
    record.admit()
    record.cached_tokens, record.draft_tokens, record.accepted_tokens = 3, 4, 1
    began, clock.now = clock.now, clock.now + 1
    record.graph("decoder", began)
    record.prefilled(5, began)
    record.token(7)
    for pause in (2, 4):
        began, clock.now = clock.now, clock.now + pause
        record.graph("decoder", began + 1)
        record.prefilled(1, began)
        record.token(7)
    return record


def test_figures_follow_from_the_times(clock: Clock) -> None:
    found = recorded(clock).metrics(prompt_tokens=8)
    assert (found.prompt_tokens, found.generation_tokens) == (8, 3)
    assert found.time_to_first_token_seconds == 3
    assert found.inter_token_latencies_seconds == (2, 4)
    assert found.time_per_output_token_seconds == 3
    assert [found.inter_token_latency_seconds(p) for p in (0, 50, 90)] == [2, 3, pytest.approx(3.8)]
    assert (found.request_queue_time_seconds, found.request_prefill_time_seconds) == (2, 1)
    assert (found.request_decode_time_seconds, found.e2e_request_latency_seconds) == (6, 9)
    assert found.request_inference_time_seconds == 5
    assert found.prefill_tokens_per_second == 5
    assert found.generation_tokens_per_second == pytest.approx(1 / 3)
    assert (found.prefix_cache_queries, found.prefix_cache_hits, found.prefix_cache_hit_rate) == (8, 3, 3 / 8)
    assert found.spec_decode_acceptance_rate == 0.25
    assert found.get_ttft() == (3000, 0)
    assert found.get_tpot() == (3000, 1000)
    assert found.get_ipot() == (pytest.approx(5000 / 3), pytest.approx(1000 * np.std([1, 1, 3])))
    assert found.get_throughput().mean == pytest.approx(1 / 3)
    assert (found.get_load_time(), found.get_inference_duration().mean, found.get_generate_duration().mean) == (
        500,
        5000,
        9000,
    )
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_request_without_tokens_has_figures_too(clock: Clock) -> None:
    found = metrics.Recorder().metrics(prompt_tokens=0)
    assert set(json.loads(json.dumps(found.as_dict(), allow_nan=False))) >= {"prefix_cache_hit_rate"}
    assert found.get_throughput() == (0, 0)


@pytest.mark.peers
def test_methods_are_those_of_openvino_genai() -> None:
    import openvino_genai

    ours = {name for name in dir(metrics.Metrics) if name.startswith("get_")}
    assert ours <= set(dir(openvino_genai.PerfMetrics))
    assert {"get_ttft", "get_tpot", "get_ipot", "get_throughput", "get_load_time"} <= ours


def test_every_figure_is_documented() -> None:
    page = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
    fields = {name for name in dir(metrics.Metrics) if not name.startswith("_")} - {"as_dict"}
    assert not [name for name in fields if f"`{name}" not in page]


def test_a_result_has_figures(path: Path) -> None:
    with genai_runner.load(path) as pipe:
        found = pipe(ids=[1, 2, 3], max_tokens=5)
        decoder = pipe.generator(ids=[1, 2], max_tokens=5)
        tokens = [decoder.generate_next_token() for _ in range(3)]
        assert (decoder.metrics.generation_tokens, decoder.metrics.prefill_tokens) == (len(tokens), 2)
        decoder.append_tokens([1])
        assert decoder.metrics.generation_tokens == 0  # a turn of its own
    assert (found.metrics.prompt_tokens, found.metrics.prefill_tokens, found.metrics.generation_tokens) == (3, 3, 5)
    assert len(found.metrics.inter_token_latencies_seconds) == 4
    assert 0 < found.metrics.request_inference_time_seconds < found.stats.total_s
    assert 0 < found.stats.ttft_s < found.stats.total_s
    assert found.metrics.load_time_seconds > 0


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"n": 2, "temperature": 1.0}, {}])
def test_tokens_are_counted_however_they_come(path: Path, options: dict[str, float]) -> None:
    with genai_runner.load(path) as pipe:
        found = pipe(ids=[1, 2], max_tokens=4, **options)
    assert found.metrics.generation_tokens == found.usage.completion_tokens >= 4
    assert found.stats.tokens_per_s > 0


def test_a_trace_tells_what_ran(path: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    with genai_runner.load(path, trace=events.append) as pipe:
        first, second = pipe(ids=[1, 2, 3], max_tokens=2), pipe(ids=[1], max_tokens=1)
    one = [event for event in events if event.request == events[0].request]
    assert [event.kind for event in one] == ["began", "graph", "prefill", "step", "graph", "step", "finished"]
    assert [event.details["token"] for event in one if event.kind == "step"] == first.tokens
    assert one[2].details == {"tokens": 3}
    assert one[2].start <= one[1].start <= one[1].start + one[1].duration <= one[2].start + one[2].duration
    assert (one[-1].duration, one[-1].details["finish_reason"]) == (first.stats.total_s, "length")
    assert len({event.request for event in events}) == 2
    assert second.tokens == [2]


def test_a_trace_in_chromes_format(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    with genai_runner.ChromeTrace(file) as trace, genai_runner.load(path, trace=trace) as pipe:
        pipe(ids=[1, 2], max_tokens=3)
    entries = json.loads(file.read_text())["traceEvents"]
    assert {entry["ph"] for entry in entries} == {"i", "X"}
    assert [entry["name"] for entry in entries].count("decoder") == 3
    for entry in entries:  # required by the format
        assert {"name", "ph", "ts", "pid", "tid"} <= set(entry)
        assert entry["ph"] == "i" or entry["dur"] >= 0


def at_step(number: int, action: Callable[[], None]) -> Callable[[Event], None]:
    """A trace that does something when that many tokens are there."""
    seen: list[Event] = []

    def trace(event: Event) -> None:
        if event.kind == "step":
            seen.append(event)
            if len(seen) == number:
                action()

    return trace


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupt_leaves_what_there_was_and_lets_go_of_states(path: Path) -> None:
    with genai_runner.load(path, trace=at_step(3, interrupt)) as pipe:
        stream = pipe.stream(ids=[1], max_tokens=20)
        groups = [weakref.ref(group) for group in stream._request.states.values()]
        pieces = []
        with pytest.raises(KeyboardInterrupt):
            pieces.extend(iter(stream.__next__, None))
        gc.collect()
        assert groups
        assert all(group() is None for group in groups)
        assert stream.result.finish_reason == "cancelled"
        assert stream.result.tokens[:2] == [2, 3]
        assert stream.result.outputs["tokens"].tolist() == [[2, 3]]
        assert stream.result.metrics.prompt_tokens == 1
        assert list(stream) == []
        assert pipe(ids=[1], max_tokens=2).tokens == [2, 3]


def test_cancel_ends_a_stream_from_any_thread(path: Path) -> None:
    with genai_runner.load(path) as pipe:
        stream = pipe.stream(ids=[1], max_tokens=20)
        assert next(stream).tolist() == [[2]]
        thread = threading.Thread(target=stream.cancel)
        thread.start()
        thread.join()
        assert list(stream) == []
        assert (stream.result.tokens, stream.result.finish_reason) == ([2], "cancelled")


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"n": 2, "temperature": 1.0, "best_of": 3}])
def test_cancel_ends_what_gives_nothing_until_its_end(path: Path, options: dict[str, float]) -> None:
    graphs: list[Event] = []

    def trace(event: Event) -> None:
        if event.kind == "graph":
            graphs.append(event)
            if len(graphs) == 3:
                stream.cancel()

    with genai_runner.load(path, trace=trace) as pipe:
        stream = pipe.stream(ids=[1], max_tokens=40, **options)
        assert list(stream) == []
        assert (stream.result.finish_reason, len(graphs)) == ("cancelled", 3)


def test_a_failure_is_not_a_result(path: Path) -> None:
    def fail() -> Any:
        raise BackendError("broken")

    with genai_runner.load(path, trace=at_step(2, fail)) as pipe:
        stream = pipe.stream(ids=[1], max_tokens=20)
        next(stream)
        with pytest.raises(BackendError):
            next(stream)
        with pytest.raises(BackendError):
            _ = stream.result
