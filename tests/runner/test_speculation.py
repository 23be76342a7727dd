# SPDX-License-Identifier: Apache-2.0
"""Guessed tokens change the speed and never the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import genai_runner
from conftest import BACKENDS, SAMPLE
from genai_runner import UsageError
from genai_runner.drafters import Lookup
from genai_runner.speculation import WIDTHS, Speculation
from runner.tiny import bundle, counter

PROMPTS = ("Once upon a time there was a cat. Once upon a time there was a", "The sun is red. The sun is")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 5}, {"repetition_penalty": 1.2}])
def test_r30_tokens_are_those_without_guesses(backend: str, options: dict[str, Any]) -> None:
    drafted = 0
    with genai_runner.load(SAMPLE, backend) as pipe:
        for prompt in PROMPTS:
            plain = pipe(prompt, max_tokens=40, ignore_eos=True, **options)
            guessed = pipe(prompt, max_tokens=40, ignore_eos=True, speculate="lookup", **options)
            assert guessed.tokens == plain.tokens
            assert guessed.text == plain.text
            drafted += guessed.stats.metrics.spec_decode_num_draft_tokens
    assert drafted > 0


def test_right_guesses_are_accepted(tmp_path: Path) -> None:
    """A model that counts in a circle is easy to guess; its cache is cut back where the request ends."""
    with genai_runner.load(counter(tmp_path / "counter.genai")) as pipe:
        plain = pipe([[1, 2, 3]], max_tokens=50)
        found = pipe([[1, 2, 3]], max_tokens=50, speculate="auto")
    metrics = found.stats.metrics
    assert found.tokens == plain.tokens
    assert 0 < metrics.spec_decode_num_accepted_tokens <= metrics.spec_decode_num_draft_tokens


def test_a_generator_rewinds_appends_and_forks_with_guesses_in_its_states() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        results = []
        for mode in ("none", "lookup"):
            generator = pipe.generator(PROMPTS[0], speculate=mode, max_tokens=60, ignore_eos=True)
            first = [generator.generate_next_token() for _ in range(20)]
            twin = generator.fork()
            generator.rewind_to(generator.prompt_length + 7)
            second = [generator.generate_next_token() for _ in range(20)]
            generator.append_tokens([5, 6, 7])
            third = [generator.generate_next_token() for _ in range(10)]
            results.append((first, second, third, [twin.generate_next_token() for _ in range(10)]))
    assert results[0] == results[1]


NEXT = """
draft (int64[batch, seq] ids, float[batch, 1, past, 1] p) =>
      (float[batch, seq, 16] logits, float[batch, 1, total, 1] q)
<int64 one = {1}, int64 fifth = {5}, int64 width = {16}, float[2] off_on = {0.0, 1.0}, int64[2] outer = {1, 3}>
{
    added = Add (ids, one)
    cast = Cast <to = 1> (ids)
    new = Unsqueeze (cast, outer)
    q = Concat <axis = 2> (p, new)
    wrapped = Mod (added, fifth)
    logits = OneHot (wrapped, width, off_on)
}
"""
"""Counts in a circle of five where the model's has eight, over a larger vocabulary: often right, and often wrong."""


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_a_draft_guesses_and_changes_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    eight = NEXT.replace("draft", "decoder").replace("{5}", "{8}").replace("16", "8")
    plain = counter(tmp_path / "plain.genai")
    with genai_runner.load(plain) as pipe:
        manifest = json.loads(pipe.bundle.read("manifest.json"))
    small = {"graph": "draft", "ports": {"p": "q"}, "axis": 2, "tokens": "ids", "capacity": 40}
    generate = manifest["steps"][0]["generate"]
    run = {"run": "draft", "in": {"ids": "ids"}, "out": {"logits": "guesses"}}
    generate["draft"] = {"do": [run], "logits": "guesses"}
    del manifest["files"], manifest["graphs"], generate["do"][0]["in"]["mask"]
    manifest["state"]["small"] = small
    path = bundle(tmp_path / "drafted.genai", {"decoder": eight, "draft": NEXT}, manifest)
    with genai_runner.load(path) as pipe:
        expected = pipe([[1, 2, 3]], max_tokens=40, **options).tokens
        found = pipe([[1, 2, 3]], max_tokens=40, speculate="draft", **options)
        twice = pipe([[1, 2, 3]], max_tokens=40, speculate="auto", **options)
    assert found.tokens == twice.tokens == expected
    assert found.metrics.spec_decode_num_draft_tokens > found.metrics.spec_decode_num_accepted_tokens


def test_an_unknown_way_is_refused() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        with pytest.raises(UsageError, match="speculate is 'fast'"):
            pipe("a", speculate="fast")
        with pytest.raises(UsageError, match="no draft"):
            pipe("a", speculate="draft")


def test_lookup_guesses_what_followed_before() -> None:
    lookup = Lookup()
    text = [1, 2, 3, 4, 5, 9, 1, 2, 3]
    assert lookup.rate(text) is not None
    assert lookup.guess(text, 4) == [4, 5, 9, 1]
    assert lookup.rate([1, 2, 3, 4]) is None  # rewound: nothing is known of what came after
    assert lookup.rate([7, 8, 7, 8, 7, 8]) is not None
    assert lookup.guess([7, 8, 7, 8, 7, 8], 5) == [7, 8, 7, 8, 7]


def test_guesses_that_cost_more_than_they_give_are_not_made() -> None:
    """A machine on which a run takes time in proportion to its tokens, and guesses that are never right."""
    speculation, tokens, made = Speculation(Lookup()), [1, 2] * 8, 0
    for _ in range(200):
        guesses = speculation.propose(tokens, 15, 100)
        made += len(guesses)
        speculation.ran(1.0 + len(guesses))
        if guesses:
            speculation.missed(len(guesses), 0.0)
    assert made < 40


def test_as_many_are_guessed_as_pay() -> None:
    """Wider runs cost nothing, and all guesses are right: as wide as it goes."""
    speculation, tokens = Speculation(Lookup()), [1, 2] * 8
    widths = []
    for _ in range(60):
        widths.append(1 + len(speculation.propose(tokens, 15, 100)))
        speculation.ran(1.0)
    assert widths[-1] == WIDTHS[-1]


def test_no_guess_lies_outside_the_vocabulary() -> None:
    speculation, tokens = Speculation(Lookup()), [50, 2, 3, 50, 2, 3, 50, 2]
    speculation.ran(1.0)
    assert speculation.propose(tokens, 3, 50) == [3]
