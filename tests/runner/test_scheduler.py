# SPDX-License-Identifier: Apache-2.0
"""Many requests at once: each gives what it gives alone, and nothing is left behind."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

import genai_runner
from conftest import SAMPLE
from genai_bundle.errors import BackendError, UsageError
from genai_bundle.manifest import Generate
from genai_runner.rows import Rows, joint
from genai_runner.scheduler import QueueFullError, Scheduler
from runner.tiny import counter

WORDS = ("once", "upon", "a", "time", "the", "cat", "saw", "red", "ball", "and", "ran", "to", "big", "tree", "mum")
FORMS = [
    ("onnxruntime", "auto"),
    ("onnxruntime", "portable"),
    ("reference", "portable"),
    pytest.param("openvino", "portable", marks=pytest.mark.openvino),
]


def requests(seed: int, count: int) -> list[dict[str, Any]]:
    """Random prompts and options: greedy and sampled, with penalties, stop strings, bounds and guesses."""
    rng, made = random.Random(seed), []
    for number in range(count):
        options: dict[str, Any] = {"max_tokens": rng.randint(1, 24)}
        if rng.random() < 0.5:
            options |= {"temperature": rng.choice([0.5, 1.0]), "seed": number, "top_k": rng.choice([0, 20])}
        if rng.random() < 0.3:
            options["repetition_penalty"] = 1.3
        if rng.random() < 0.3:
            options["stop"] = [rng.choice([".", "the", "\n"])]
        if rng.random() < 0.3:
            options["speculate"] = "lookup"
        if rng.random() < 0.5:
            options["ignore_eos"] = True
        prompt = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 40)))
        made.append({"prompt": prompt, **options})
    return made


def ask(run: Any, request: dict[str, Any]) -> Any:
    return run(request["prompt"], **{name: value for name, value in request.items() if name != "prompt"})


@pytest.mark.parametrize("cache", [0, 1 << 20])
@pytest.mark.parametrize(("backend", "variant"), FORMS)
def test_r34_tokens_are_the_same_alone_and_in_any_mix(backend: str, variant: str, cache: int) -> None:
    with genai_runner.load(SAMPLE, backend, variant=variant, prefix_cache=cache) as pipe:
        step = next(step for step in pipe.manifest.steps if isinstance(step, Generate))
        assert joint(pipe._program, step) is None
        for seed in range(2):
            wanted = requests(seed, 14)
            alone = [ask(pipe, one) for one in wanted]
            rng = random.Random(seed)
            with Scheduler(pipe, rows=rng.randint(2, 8), chunk=rng.choice([3, 16, 256])) as scheduler:
                streams = []
                for one in wanted:
                    streams.append(ask(scheduler.submit, one))
                    time.sleep(rng.choice([0, 0, 0.01]))
                found = [stream.result for stream in streams]
            assert [one.tokens for one in found] == [one.tokens for one in alone]
            assert [(one.text, one.finish_reason) for one in found] == [(one.text, one.finish_reason) for one in alone]


def test_pieces_come_as_they_are_made() -> None:
    with genai_runner.load(SAMPLE) as pipe, Scheduler(pipe) as scheduler:
        stream = scheduler.submit("Once upon a time", max_tokens=30)
        pieces = list(stream)
    assert len(pieces) > 5
    assert "".join(pieces) == stream.result.text
    assert stream.result.metrics.generation_tokens == len(stream.result.tokens)


def test_what_cannot_share_a_run_takes_turns(tmp_path: Path) -> None:
    """The model that counts has no row for lengths but its mask sums them, which differs for padded rows or not: it is
    tried, and whatever comes of that, the tokens are the same."""
    with genai_runner.load(counter(tmp_path / "counter.genai")) as pipe:
        prompts = [[[1, 2, 3]], [[7]], [[2, 4, 6, 0, 1]]]
        alone = [pipe(prompt, max_tokens=9).tokens for prompt in prompts]
        with Scheduler(pipe) as scheduler:
            streams = [scheduler.submit(prompt, max_tokens=9) for prompt in prompts]
            assert [stream.result.tokens for stream in streams] == alone


def test_several_answers_and_beams_take_turns_with_others() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        asked: list[dict[str, Any]] = [{"n": 3, "temperature": 1.0}, {"num_beams": 3, "temperature": 0}, {}]
        alone = [pipe("Once upon a time", max_tokens=8, **one) for one in asked]
        with Scheduler(pipe) as scheduler:
            streams = [scheduler.submit("Once upon a time", max_tokens=8, **one) for one in asked]
            for stream, one in zip(streams, alone, strict=True):
                assert [found.tokens for found in stream.result.sequences] == [found.tokens for found in one.sequences]


def test_wrong_arguments_are_refused_at_once_and_failures_are_the_requests_own() -> None:
    def broken(ids: Any, scores: Any) -> Any:
        raise BackendError("the processor is broken")

    with genai_runner.load(SAMPLE) as pipe, Scheduler(pipe) as scheduler:
        with pytest.raises(UsageError, match="temprature"):
            scheduler.submit("a", temprature=1)
        bad = scheduler.submit("Once", processors=[broken])
        good = scheduler.submit("Once", max_tokens=5)
        assert len(good.result.tokens) > 0
        with pytest.raises(BackendError, match="broken"):
            _ = bad.result
        long = scheduler.submit("a " * 2000, max_tokens=5)
        with pytest.raises(UsageError, match="no room"):
            _ = long.result


class Gate:
    """A processor that lets nothing pass until it is opened, and notes who came."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, ids: Any, scores: Any) -> Any:
        assert self.open.wait(30)
        return scores


def test_a_full_queue_pushes_back_and_priorities_go_first() -> None:
    order: list[int] = []

    def noting(number: int) -> Any:
        def note(ids: Any, scores: Any) -> Any:
            order.append(number)
            return scores

        return note

    gate = Gate()
    with genai_runner.load(SAMPLE) as pipe, Scheduler(pipe, rows=1, waiting=3) as scheduler:
        first = scheduler.submit("Once", processors=[gate], max_tokens=1)
        while scheduler.active == 0:
            time.sleep(0.005)
        rest = [scheduler.submit("Once", processors=[noting(p)], priority=p, max_tokens=1) for p in (0, 2, 1)]
        with pytest.raises(QueueFullError, match="3 requests wait"):
            scheduler.submit("Once", wait=False)
        gate.open.set()
        for stream in [first, *rest]:
            assert stream.result.finish_reason == "length"
    assert order == [2, 1, 0]


def test_a_low_priority_is_not_passed_over_for_ever() -> None:
    gate, order = Gate(), list[str]()

    def note(ids: Any, scores: Any) -> Any:
        order.append("low")
        return scores

    with genai_runner.load(SAMPLE) as pipe, Scheduler(pipe, rows=1) as scheduler:
        first = scheduler.submit("Once", processors=[gate], max_tokens=1)
        low = scheduler.submit("Once", processors=[note], max_tokens=1)

        def high(ids: Any, scores: Any) -> Any:
            order.append("high")
            return scores

        many = [scheduler.submit("Once", processors=[high], priority=1, max_tokens=1) for _ in range(40)]
        gate.open.set()
        for stream in [first, low, *many]:
            _ = stream.result
    assert order.index("low") < 30


@pytest.mark.parametrize("variant", ["auto", "portable"])
def test_a_hundred_requests_with_random_cancellations_leave_nothing_behind(variant: str) -> None:
    threads, rng = threading.active_count(), random.Random(1)
    with genai_runner.load(SAMPLE, variant=variant, prefix_cache=1 << 20) as pipe:
        expected = pipe("Once upon a time", max_tokens=16).tokens
        scheduler = Scheduler(pipe, rows=8)
        held: list[weakref.ref[Any]] = []

        def user(number: int) -> None:
            stream = scheduler.submit("Once upon a time", max_tokens=16)
            held.append(weakref.ref(stream._request))
            if number % 2:
                time.sleep(rng.random() * 0.2)
                stream.cancel()
            result = stream.result
            outcomes.append((result.finish_reason, result.tokens))

        outcomes: list[tuple[str, list[int]]] = []
        users = [threading.Thread(target=user, args=(number,)) for number in range(100)]
        for one in users:
            one.start()
        for one in users:
            one.join(60)
        assert len(outcomes) == 100
        assert sum(reason != "cancelled" for reason, _ in outcomes) >= 50
        for reason, tokens in outcomes:
            assert tokens == expected if reason != "cancelled" else tokens == expected[: len(tokens)]
        until(lambda: scheduler.active == scheduler.waiting == 0)
        assert not scheduler._rows
        scheduler.close()
        gc.collect()
        assert [one for one in held if one() is not None] == []
        assert pipe.prefix_cache is not None
        assert pipe.prefix_cache.nbytes <= 1 << 20
    assert threading.active_count() == threads


def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to rest")


def test_closing_cancels_what_runs() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        with Scheduler(pipe, rows=2) as scheduler:
            streams = [scheduler.submit("Once", max_tokens=400, ignore_eos=True) for _ in range(5)]
            next(streams[0])
        assert {stream.result.finish_reason for stream in streams} == {"cancelled"}
        with pytest.raises(UsageError, match="closed"):
            scheduler.submit("Once")


def failure(stream: genai_runner.Stream, expected: list[int]) -> str | None:
    """What the request failed with; one that did not must have given what was expected."""
    try:
        tokens = stream.result.tokens
    except BackendError as error:
        return str(error)
    assert tokens == expected
    return None


@pytest.mark.parametrize("verb", ["add", "save"])
def test_a_row_that_fails_ends_requests_and_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """A request whose states were handed over has none of its own: it must not go on, and its stream must end."""

    def broken(*_: Any) -> Any:
        raise BackendError("no memory for a row")

    with genai_runner.load(SAMPLE, prefix_cache=1 << 20) as pipe:
        step = next(step for step in pipe.manifest.steps if isinstance(step, Generate))
        assert joint(pipe._program, step) is None
        monkeypatch.setattr(Rows, verb, broken)
        alone = pipe("Once", max_tokens=8, ignore_eos=True).tokens
        with Scheduler(pipe) as scheduler:
            streams = [scheduler.submit("Once", max_tokens=8, ignore_eos=True) for _ in range(3)]
            errors = [outcome for stream in streams if (outcome := failure(stream, alone))]
            assert errors
            assert all("no memory for a row" in one for one in errors)
            until(lambda: scheduler.active == 0)
            monkeypatch.undo()
            assert scheduler.submit("Once", max_tokens=8, ignore_eos=True).result.tokens == alone
