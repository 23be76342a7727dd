# SPDX-License-Identifier: Apache-2.0
"""A draft that reads what the body computed: it is given the right values, and changes no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import genai_runner
from conftest import BACKENDS
from genai_runner.drafters import Drafter
from genai_runner.speculation import Speculation
from runner.tiny import bundle

DECODER = """
decoder (int64[batch, seq] ids, int64 n, float[batch, past, 1] p) =>
        (float[batch, n, 8] logits, float[batch, seq, 2] hidden, float[batch, total, 1] q)
<int64 eight = {8}, float[2] off_on = {0.0, 4.0}, int64[1] last = {-1}, int64[1] one = {1},
 float[1, 1, 1] nothing = {0.0}, int64[1] end = {2147483647}>
{
    now = Cast <to = 1> (ids)
    new = Unsqueeze (now, last)
    q = Concat <axis = 1> (p, new)
    longer = Concat <axis = 1> (nothing, q)
    count = Shape <start = 1, end = 2> (ids)
    negative = Neg (count)
    from = Sub (negative, one)
    before = Slice (longer, from, last, one)
    sum = Add (new, before)
    flat = Squeeze (sum, last)
    whole = Cast <to = 7> (flat)
    next = Mod (whole, eight)
    all = OneHot (next, eight, off_on)
    asked = Neg (n)
    begin = Reshape (asked, one)
    logits = Slice (all, begin, end, one)
    hidden = Concat <axis = 2> (new, before)
}
"""
"""Each token is the sum of the two before it, modulo 8. `hidden`: a token and the one before it."""

HEAD = """
head (int64[batch, seq] ids, float[batch, seq, 2] hidden, float[batch, past, 2] p) =>
     (float[batch, seq, 8] logits, float[batch, seq, 2] mine, float[batch, total, 2] q)
<int64 eight = {8}, float[2] off_on = {0.0, 4.0}, int64[1] last = {-1}, int64[1] zero = {0}, int64[1] one = {1},
 int64[1] two = {2}, float three = {3.0}, int64[1] end = {-1}>
{
    now = Cast <to = 1> (ids)
    new = Unsqueeze (now, last)
    first = Slice (hidden, zero, one, two)
    before = Slice (hidden, one, two, two)
    mine = Concat <axis = 2> (new, first)
    q = Concat <axis = 1> (p, mine)
    edge = Slice (mine, zero, one, one)
    turned = Slice (hidden, zero, one, one)
    longer = Concat <axis = 1> (turned, q)
    count = Shape <start = 1, end = 2> (ids)
    negative = Neg (count)
    from = Sub (negative, one)
    kept = Slice (longer, from, end, one)
    gap = Sub (kept, hidden)
    error = ReduceSum <keepdims = 1> (gap, last)
    wrong = Mul (error, three)
    right = Add (new, first)
    sum = Add (right, wrong)
    flat = Squeeze (sum, last)
    whole = Cast <to = 7> (flat)
    next = Mod (whole, eight)
    logits = OneHot (next, eight, off_on)
}
"""
"""The same sum of an id and of what the body computed at the position before. It is right only where its own cache
holds, right before, the same as what it is given: a value of another position, or a cache not cut, shows."""


@pytest.fixture(scope="module")
def fibonacci(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = {"run": "decoder", "in": {"ids": "ids"}, "out": {"logits": "logits", "hidden": "hidden"}}
    body["with"] = {"n": 1}
    guess = {"run": "head", "in": {"ids": "ids", "hidden": "seen"}, "out": {"logits": "guesses", "mine": "mine"}}
    draft = {"carry": {"seen": ["hidden", "mine"]}, "do": [guess], "logits": "guesses"}
    generate = {"carry": {"ids": "token"}, "do": [body], "logits": "logits", "emit": {"tokens": "token"}}
    manifest: dict[str, Any] = {
        "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}},
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}},
        "state": {
            "kv": {"graph": "decoder", "ports": {"p": "q"}, "axis": 1, "tokens": "ids", "capacity": 400},
            "small": {"graph": "head", "ports": {"p": "q"}, "axis": 1, "tokens": "ids", "capacity": 300},
        },
        "steps": [{"generate": {**generate, "draft": draft}}],
    }
    path = tmp_path_factory.mktemp("heads") / "fibonacci.genai"
    return bundle(path, {"decoder": DECODER, "head": HEAD}, manifest)


def sums(a: int, b: int, count: int) -> list[int]:
    found = [a, b]
    while len(found) < count + 2:
        found.append((found[-1] + found[-2]) % 8)
    return found[2:]


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many guesses as may be made, by turns one to five: what pays on this machine is not the question here."""
    asked = [0]

    def propose(self: Speculation, tokens: list[int], most: int, vocabulary: int) -> list[int]:
        asked[0] += 1
        drafter: Drafter = self.drafter
        count = min(most, 1 + asked[0] % 5)
        guesses = drafter.guess(tokens, count) if count > 0 and drafter.rate(tokens) is not None else []
        self._width = 1 + len(guesses)
        return guesses

    monkeypatch.setattr(Speculation, "propose", propose)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_guess_of_a_head_that_is_right_is_accepted(fibonacci: Path, backend: str) -> None:
    with genai_runner.load(fibonacci, backend) as pipe:
        found = pipe([[5, 3, 0, 1, 1]], max_tokens=60, speculate="draft", temperature=0)
    assert found.tokens == sums(1, 1, 60)
    metrics = found.stats.metrics
    assert metrics.spec_decode_num_accepted_tokens == metrics.spec_decode_num_draft_tokens > 30


@pytest.mark.parametrize("backend", BACKENDS)
def test_sampled_tokens_are_those_without_guesses(fibonacci: Path, backend: str) -> None:
    """Half of the draws are not the likeliest token: guesses are often wrong, and the head finds its way again."""
    options = {"max_tokens": 80, "temperature": 1.5, "seed": 11}
    with genai_runner.load(fibonacci, backend) as pipe:
        plain = pipe([[2, 7, 1]], **options)
        found = pipe([[2, 7, 1]], speculate="auto", **options)
    assert found.tokens == plain.tokens
    metrics = found.stats.metrics
    assert 0 < metrics.spec_decode_num_accepted_tokens < metrics.spec_decode_num_draft_tokens
    likeliest = sum((a + b) % 8 == c for a, b, c in zip(found.tokens, found.tokens[1:], found.tokens[2:], strict=False))
    assert metrics.spec_decode_num_accepted_tokens > likeliest / 3


def test_a_conversation_goes_on_with_guesses(fibonacci: Path) -> None:
    """Turns that are added, and a text that goes back: to before and behind where the head began."""
    with genai_runner.load(fibonacci) as pipe:
        results = []
        for mode in ("none", "draft"):
            generator = pipe.generator([[1, 2]], speculate=mode, max_tokens=100, temperature=0)
            answers = [[generator.generate_next_token() for _ in range(20)]]
            generator.append_tokens([4, 4, 1])
            answers.append([generator.generate_next_token() for _ in range(20)])
            generator.rewind_to(12)
            generator.append_tokens([6])
            answers.append([generator.generate_next_token() for _ in range(20)])
            twin = generator.fork()
            generator.rewind_to(1)
            generator.append_tokens([3])
            answers += [[one.generate_next_token() for _ in range(20)] for one in (generator, twin)]
            results.append(answers)
    assert results[0] == results[1]
    assert results[1][1] == sums(4, 1, 20)
    metrics = generator.metrics
    assert metrics.spec_decode_num_accepted_tokens == metrics.spec_decode_num_draft_tokens > 10


def test_a_beginning_that_was_computed_before_is_not_missed(fibonacci: Path) -> None:
    """The head begins where the values begin: behind what a cache of prefixes held."""
    prompt = [[(3 * i * i + i) % 8 for i in range(100)]]
    with genai_runner.load(fibonacci, prefix_cache=1 << 20) as pipe:
        first = pipe(prompt, max_tokens=40, speculate="draft", temperature=0)
        again = pipe(prompt, max_tokens=40, speculate="draft", temperature=0)
        metrics = again.stats.metrics
    assert first.tokens == again.tokens == sums(*prompt[0][-2:], 40)
    assert metrics.prefix_cache_hits == 96
    assert metrics.spec_decode_num_accepted_tokens == metrics.spec_decode_num_draft_tokens > 20


def test_requests_that_take_turns_have_guesses(fibonacci: Path) -> None:
    prompts = [[[i, 7 - i] * 20] for i in range(3)]
    with genai_runner.load(fibonacci) as pipe, genai_runner.Scheduler(pipe, rows=2, chunk=16) as scheduler:
        options = {"max_tokens": 30, "temperature": 0}
        streams = [scheduler.submit(prompt, speculate="draft", **options) for prompt in prompts]
        results = [stream.result for stream in streams]
    for prompt, result in zip(prompts, results, strict=True):
        assert result.tokens == sums(*prompt[0][-2:], 30)


def test_a_full_context_of_the_head_ends_its_guesses(fibonacci: Path) -> None:
    with genai_runner.load(fibonacci) as pipe:
        found = pipe([[1, 1] * 140], max_tokens=100, speculate="draft", temperature=0)
    assert found.tokens == sums(1, 1, 100)
    assert 0 < found.stats.metrics.spec_decode_num_draft_tokens <= 20


def test_nothing_is_fetched_for_a_head_that_guesses_nothing(fibonacci: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genai_runner.backends.onnxruntime import OnnxRuntimeGraph

    wanted: set[str] = set()
    run = OnnxRuntimeGraph.run

    def watch(self: Any, feeds: Any, want: Any, **named: Any) -> Any:
        wanted.update(want)
        return run(self, feeds, want, **named)

    monkeypatch.setattr(OnnxRuntimeGraph, "run", watch)
    with genai_runner.load(fibonacci) as pipe:
        for mode, fetched in (("none", False), ("lookup", False), ("draft", True)):
            wanted.clear()
            pipe([[1, 1]], max_tokens=5, speculate=mode)
            assert ("hidden" in wanted) is fetched, mode
