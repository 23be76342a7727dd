# SPDX-License-Identifier: Apache-2.0
"""Many requests at once: they share runs of the model, and each gives what it gives alone.

python examples/many.py "Once upon a time" "The sun" "A cat"
"""

import sys
from pathlib import Path

import genai_runner

SAMPLE = Path(__file__).parent / "tiny-stories.genai"


def main(prompts: list[str]) -> None:
    with genai_runner.load(SAMPLE, prefix_cache=64 << 20) as pipe, genai_runner.Scheduler(pipe, rows=8) as scheduler:
        streams = [scheduler.submit(prompt, max_tokens=20, temperature=0) for prompt in prompts]
        for prompt, stream in zip(prompts, streams, strict=True):
            result = stream.result
            print(f"{prompt}{result.text}")
            print(f"  [{len(result.tokens)} tokens, first after {1e3 * result.stats.ttft_s:.0f} ms]")


if __name__ == "__main__":
    main(sys.argv[1:] or ["Once upon a time", "The sun", "A cat"])
