# SPDX-License-Identifier: Apache-2.0
"""A conversation's answers are those of requests of their own; only what is new is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import genai_runner
from genai_bundle.errors import UsageError
from runner.tiny import counter

QUESTIONS = ["What is your name?", "What colour is the sky? Is it blue? Is it green?", "What is 2 + 3?"]
OPTIONS: dict[str, Any] = {"max_tokens": 24, "temperature": 0.8, "seed": 5}


@pytest.mark.parametrize("backend", ["onnxruntime", "reference"])
def test_every_turn_is_what_a_request_of_its_own_gives(sample: Path, backend: str) -> None:
    messages: list[dict[str, str]] = [{"role": "system", "content": "You are a bear."}]
    kept = []
    with genai_runner.load(sample, backend) as pipe:
        conversation = pipe.conversation(system="You are a bear.", **OPTIONS)
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            expected = pipe(messages=messages, **OPTIONS)
            turn = conversation.stream(question)
            assert "".join(map(str, turn)) == expected.text
            assert turn.result.tokens == expected.tokens
            kept.append(turn.result.metrics.prefix_cache_hits)
            messages.append({"role": "assistant", "content": expected.text})
        assert conversation.messages == messages
    assert kept[0] == 0
    assert kept[2] > 0


def test_retry_and_undo(sample: Path) -> None:
    with genai_runner.load(sample) as pipe:
        conversation = pipe.conversation(**OPTIONS)
        with pytest.raises(UsageError, match="nothing was answered"):
            conversation.undo()
        first = conversation.say(QUESTIONS[0])
        again = conversation.retry()
        assert again.tokens == first.tokens
        asked = [{"role": "user", "content": QUESTIONS[0]}]
        expected = pipe(messages=asked, **{**OPTIONS, "seed": 9})
        assert conversation.retry(seed=9).tokens == expected.tokens
        before = list(conversation.messages)
        conversation.say([{"role": "tool", "content": "5"}, {"role": "user", "content": QUESTIONS[2]}])
        conversation.undo()
        assert conversation.messages == before
        conversation.undo()
        assert conversation.messages == []


def test_a_turn_that_fails_leaves_everything_as_it_was(sample: Path) -> None:
    with genai_runner.load(sample) as pipe:
        conversation = pipe.conversation(**OPTIONS)
        conversation.say(QUESTIONS[0])
        before = list(conversation.messages)
        with pytest.raises(UsageError):
            conversation.say("long " * 3000)
        with pytest.raises(UsageError, match="temprature"):
            conversation.say("Hello", temprature=1)
        assert conversation.messages == before


def test_what_the_bundle_does_not_take_is_refused(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes no messages"):
        genai_runner.load(counter(tmp_path / "counter.genai")).conversation()
    with genai_runner.load(sample) as pipe, pytest.raises(UsageError, match="takes no tools"):
        pipe.conversation(tools=[])
