# SPDX-License-Identifier: Apache-2.0
"""What a saved prefix spares: time to the first token of a first request, with `genai-bundle prefill` and without.

    python benchmarks/prefix.py model.genai
    python benchmarks/prefix.py model.genai --backend openvino --words 2000 --rounds 5 --json

Every request is the first one of a pipeline just loaded, as `run` makes it, so that reading the file counts. Both
sides take turns; figures are medians. What is saved goes to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import genai_runner
from genai_runner.prefill import prefill_prompt

WORDS = "Once upon a time a small boat went down the river, and many people stood on the bank and waved."


def first(path: Path, backend: str, prompt: str, *, saved: bool) -> tuple[float, int, list[int]]:
    """Seconds to the first token, tokens that were not computed, and the tokens."""
    with genai_runner.load(path, backend, saved_prefixes=saved) as pipe:
        found = pipe(prompt, max_tokens=4, temperature=0)
    return found.metrics.time_to_first_token_seconds, found.metrics.prefix_cache_hits, found.tokens


def measure(path: Path, backend: str, words: int, rounds: int) -> dict[str, Any]:
    text = " ".join((WORDS.split() * (words // 20 + 1))[:words])
    with genai_runner.load(path, backend) as pipe:
        prefix = prefill_prompt(pipe, text)
    times: dict[bool, list[float]] = {True: [], False: []}
    tokens: dict[bool, list[int]] = {}
    cached = 0
    for number in range(2 * rounds):
        saved = number % 2 == 0
        seconds, hits, tokens[saved] = first(path, backend, f"{text} The end", saved=saved)
        times[saved].append(seconds)
        cached = max(cached, hits)
    return {
        "backend": backend,
        "prefix_tokens": len(prefix.ids),
        "prefix_bytes": prefix.nbytes,
        "cached_tokens": cached,
        "first_token_s": {"with": median(times[True]), "without": median(times[False])},
        "times": median(times[False]) / median(times[True]),
        "same_tokens": tokens[True] == tokens[False],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--words", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GENAI_CACHE_DIR"] = folder
        found = measure(asked.file, asked.backend, asked.words, asked.rounds)
    if asked.json:
        print(json.dumps(found))
        return
    seconds, same = found["first_token_s"], "the same" if found["same_tokens"] else "OTHER"
    size = f"{found['prefix_tokens']} tokens, {found['prefix_bytes'] / 1e6:.1f} MB"
    parts = f"{1000 * seconds['without']:.1f} ms without, {1000 * seconds['with']:.1f} ms with"
    print(f"{asked.backend}: {size}; first token {parts} ({found['times']:.1f} times as fast); {same} tokens")


if __name__ == "__main__":
    main()
