# SPDX-License-Identifier: Apache-2.0
"""The same application on three stacks: one word chooses which. Each says what it is, and writes the same text.

python examples/engines.py genai-bundle
python examples/engines.py onnxruntime-genai    # needs: pip install "genai-bundle[ort-genai]"
python examples/engines.py openvino-genai       # needs: pip install "genai-bundle[openvino-genai]"
"""

import sys
from pathlib import Path

from genai_runner.interfaces import load

SAMPLE = Path(__file__).parent / "tiny-stories.genai"


def main(engine: str, question: str) -> None:
    with load(SAMPLE, engine=engine) as pipe:
        config = pipe.get_generation_config()
        config.max_new_tokens = 40
        config.sampling_config.do_sample = False
        print(f"[{pipe.engine}]")
        for piece in pipe.stream("Once upon a time", config):
            print(piece, end="", flush=True)
        print()
        config.stop_strings = {"."}
        print(pipe([{"role": "user", "content": question}], config).text)


if __name__ == "__main__":
    engine = sys.argv[1] if len(sys.argv) > 1 else "genai-bundle"
    main(engine, sys.argv[2] if len(sys.argv) > 2 else "What is 2 + 3?")
