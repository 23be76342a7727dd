# SPDX-License-Identifier: Apache-2.0
"""What the decode engine gains: requests together beside one by one, guessed tokens beside none; and what beams cost.

    python benchmarks/engine.py                      # 100 M random parameters, fp32 and int4
    python benchmarks/engine.py --quick              # a small model, few tokens: whether it works
    python benchmarks/engine.py --folder work --rounds 5 --json

The model is the one of decode.py, on the ONNX Runtime backend. Both sides of a pair take turns, `--rounds` times, and
the best of each counts; ratios are throughputs, ours with the feature over ours without.

Batching: 16 requests through `Scheduler` beside the same ones after each other. Guessing (`speculate="lookup"`): a
random model copies nothing, so a processor dictates the answer: "copy" repeats passages of the prompt of 24 tokens with
one new token between them, as edits and quotations do; "random" is tokens that never came before in this order. Whether
guesses come true then is the text's doing; what they cost and save is the model's and the engine's.
Beams: an answer searched with four, beside a greedy one; four runs of the model for each token would give 0.25.
Needs the extra `build`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from decode import bundles
from rich.console import Console
from rich.table import Table

import genai_runner

REQUESTS = 16


@dataclass(frozen=True)
class Row:
    """Tokens a second with and without."""

    what: str
    weights: str
    with_it: float
    without: float

    @property
    def ratio(self) -> float:
        return self.with_it / self.without


class Dictated:
    """A processor that leaves one id: what stands in `answer` at this place."""

    def __init__(self, prompt: int, answer: Sequence[int]) -> None:
        self._prompt, self._answer = prompt, answer

    def __call__(self, ids: Sequence[int], scores: Any) -> Any:
        scores[self._answer[len(ids) - self._prompt]] = 1e9
        return scores


def paired(first: Callable[[], int], second: Callable[[], int], rounds: int) -> tuple[float, float]:
    """Tokens a second of both, the best of rounds in which they take turns, after one that warms up."""
    best = [0.0, 0.0]
    for turn in range(rounds + 1):
        for index, run in enumerate((first, second)):
            start = time.perf_counter()
            tokens = run()
            if turn:
                best[index] = max(best[index], tokens / (time.perf_counter() - start))
    return best[0], best[1]


def batching(pipe: genai_runner.Pipeline, tokens: int, rounds: int) -> tuple[float, float]:
    prompts = ["".join(chr(97 + (place * place + number) % 23) for place in range(32)) for number in range(REQUESTS)]

    def alone() -> int:
        return sum(len(pipe(prompt, max_tokens=tokens, ignore_eos=True).tokens) for prompt in prompts)

    with genai_runner.Scheduler(pipe, rows=REQUESTS) as scheduler:

        def together() -> int:
            streams = [scheduler.submit(prompt, max_tokens=tokens, ignore_eos=True) for prompt in prompts]
            return sum(len(stream.result.tokens) for stream in streams)

        return paired(together, alone, rounds)


def guessing(pipe: genai_runner.Pipeline, kind: str, tokens: int, rounds: int) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    text = "".join(chr(97 + letter) for letter in rng.integers(0, 26, 256))
    ids = pipe.encode(text)
    vocabulary = pipe.generator(text).get_logits().size
    answer = [int(one) for one in rng.permutation(vocabulary)[:tokens]]
    if kind == "copy":
        for place in range(0, tokens, 25):
            start = int(rng.integers(0, len(ids) - 24))
            answer[place + 1 : place + 25] = ids[start : start + 24]
        answer = answer[:tokens]

    def run(mode: str) -> Callable[[], int]:
        settings: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "speculate": mode}
        return lambda: len(pipe(text, processors=[Dictated(len(ids), answer)], **settings).tokens)

    return paired(run("lookup"), run("none"), rounds)


def beams(pipe: genai_runner.Pipeline, tokens: int, rounds: int) -> tuple[float, float]:
    def run(count: int) -> Callable[[], int]:
        settings: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "num_beams": count}
        return lambda: len(pipe("abcdefghijklmnopqrstuvwxyz", temperature=0, **settings).tokens)

    return paired(run(4), run(1), rounds)


def rows(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    for weights, bundle in bundles(folder, options.weights, quick=options.quick):
        with genai_runner.load(bundle) as pipe:
            yield Row(f"{REQUESTS} requests", weights, *batching(pipe, options.tokens, options.rounds))
            for kind in ("copy", "random"):
                found = guessing(pipe, kind, options.tokens, options.rounds)
                yield Row(f"lookup, {kind}", weights, *found)
            yield Row("4 beams", weights, *beams(pipe, options.tokens, options.rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, few tokens, one round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side that count")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of a request")
    parser.add_argument("--weights", nargs="+", choices=("fp32", "int4"), default=["fp32", "int4"])
    parser.add_argument("--folder", type=Path, help="keep all files here, and use what is here already")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tokens = 1, 16
    with tempfile.TemporaryDirectory() as place:
        found = list(rows(options.folder or Path(place), options))
    if options.json:
        print(json.dumps([{**asdict(row), "ratio": row.ratio} for row in found]))
        return
    table = Table(title="tokens a second")
    for name in ("what", "weights", "with", "without", "ratio"):
        table.add_column(name, justify="left" if name in ("what", "weights") else "right")
    for row in found:
        table.add_row(row.what, row.weights, f"{row.with_it:.1f}", f"{row.without:.1f}", f"{row.ratio:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
