# SPDX-License-Identifier: Apache-2.0
"""Drive generation by hand: look at the likeliest next tokens, take one, go back and take another.

python examples/choices.py "Once upon a time"
"""

import sys
from pathlib import Path

import numpy as np

import genai_runner

SAMPLE = Path(__file__).parent / "tiny-stories.genai"


def main(prompt: str) -> None:
    with genai_runner.load(SAMPLE) as pipe:
        generator = pipe.generator(prompt, temperature=0)
        start = len(generator.tokens)
        logits = generator.get_logits()
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        for token in np.argsort(-probabilities)[:3]:
            generator.append_tokens([int(token)])
            while not generator.is_done and len(generator.tokens) < start + 12:
                generator.generate_next_token()
            print(f"{probabilities[token]:6.1%}  {pipe.decode(generator.tokens)}")
            generator.rewind_to(start)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "Once upon a time")
