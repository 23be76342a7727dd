# SPDX-License-Identifier: Apache-2.0
"""Texts longer than the context: an error unless asked otherwise, and then what the specification says."""

from __future__ import annotations

from collections import ChainMap

import numpy as np
import pytest

import genai_runner
from conftest import BACKENDS, SAMPLE
from genai_bundle.errors import UsageError
from genai_bundle.manifest import Generate
from genai_runner.arguments import Arguments
from genai_runner.body import Body
from genai_runner.interpreter import Request
from genai_runner.scheduler import Scheduler

CONTEXT = 512
LONG = "Once upon a time there was a cat. " * 80


def test_a_prompt_that_is_too_long_is_refused() -> None:
    with genai_runner.load(SAMPLE) as pipe, pytest.raises(UsageError, match="no room in the context of 512"):
        pipe(LONG)


def by_hand(pipe: genai_runner.Pipeline, prompt: str, total: int, keep: int) -> list[int]:
    """Greedy tokens by the rule's own words: fresh states whenever the context is full."""
    program = pipe._program
    step = next(step for step in program.manifest.steps if isinstance(step, Generate))
    tokens = pending = pipe.encode(prompt)
    count, held, body = len(tokens), 0, None
    while len(tokens) < count + total:
        if held + len(pending) > CONTEXT:
            last = (CONTEXT - keep) // 2
            pending, held, body = tokens[:keep] + tokens[-last:], 0, None
        body = body or Body(Request(program, Arguments()), step.do, step.logits, ChainMap(), "ids")
        run = body.run(pending, {})
        with pytest.raises(StopIteration) as end:
            next(run)
        held += len(pending)
        pending = [int(np.argmax(end.value.value[0][-1]))]
        tokens = tokens + pending
    return tokens[count:]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", [0, 11])
def test_r33_a_shift_runs_a_beginning_and_an_end_again(backend: str, keep: int) -> None:
    with genai_runner.load(SAMPLE, backend) as pipe:
        prompt = "Once upon a time there was a cat. " * 40
        options = {"temperature": 0, "ignore_eos": True, "overflow": "shift", "overflow_keep": keep}
        found = pipe(prompt, max_tokens=250, **options).tokens
        assert len(pipe.encode(prompt)) + 250 > CONTEXT
        assert found == by_hand(pipe, prompt, 250, keep)


def test_a_shift_goes_on_for_ever_and_in_company_too() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        options = {"max_tokens": 600, "ignore_eos": True, "overflow": "shift", "overflow_keep": 4}
        alone = pipe(LONG, **options)
        assert len(alone.tokens) == 600
        assert alone.finish_reason == "length"
        with Scheduler(pipe, chunk=50) as scheduler:
            first, second = scheduler.submit(LONG, **options), scheduler.submit(LONG, **options)
            scheduler.submit("Once", max_tokens=50)
            assert first.result.tokens == second.result.tokens == alone.tokens


def test_too_much_to_keep_is_refused() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        with pytest.raises(UsageError, match="overflow_keep is 511"):
            pipe("a", overflow="shift", overflow_keep=511)
        with pytest.raises(UsageError, match="'error' or 'shift'"):
            pipe("a", overflow="cut")


def test_what_was_let_go_cannot_be_rewound_to() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        generator = pipe.generator(LONG, overflow="shift", max_tokens=5)
        generator.generate_next_token()
        with pytest.raises(UsageError, match="let go"):
            generator.rewind_to(5)
