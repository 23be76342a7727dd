# SPDX-License-Identifier: Apache-2.0
"""A conversation with the sample: the bundle's own chat template turns the messages into a prompt.

python examples/chat.py "What is your name?" "What is 2 + 3?"
"""

import sys
from pathlib import Path

import genai_runner

SAMPLE = Path(__file__).parent / "tiny-stories.genai"


def main(questions: list[str]) -> None:
    with genai_runner.load(SAMPLE) as pipe:
        conversation = pipe.conversation(max_tokens=80, temperature=0)
        for question in questions:
            print(f"> {question}")
            for piece in conversation.stream(question):
                print(piece, end="", flush=True)
            print()


if __name__ == "__main__":
    main(sys.argv[1:] or ["What is your name?", "What colour is the sky?"])
