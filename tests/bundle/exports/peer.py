# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens by onnxruntime-genai, for the golden vectors of a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genai_bundle.bundle import open_bundle
from genai_bundle.exports import choose, write


def exported(bundle: Path, folder: Path, to: str, variant: str = "auto") -> Path:
    target = choose(to)
    with open_bundle(bundle) as opened:
        write(opened, target, target.plan(opened, variant), folder)
    return folder


def prompts(bundle: Path) -> list[tuple[Mapping[str, Any], list[int]]]:
    """The golden vectors that take a prompt or a conversation: inputs, and the tokens of the source model."""
    with open_bundle(bundle) as opened:
        tests = opened.manifest.tests
    return [(test.inputs, test.outputs["tokens"][0]) for test in tests]


class Peer:
    """A folder loaded by onnxruntime-genai."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai as runtime

        self.runtime = runtime
        self.model = runtime.Model(str(folder))
        self.tokenizer = runtime.Tokenizer(self.model)

    def ids(self, given: Mapping[str, Any]) -> list[int]:
        if "messages" in given:
            text = self.tokenizer.apply_chat_template(json.dumps(given["messages"]), add_generation_prompt=True)
            self.tokenizer.update_options(add_special_tokens="false")
        else:
            text = given["prompt"]
            self.tokenizer.update_options(add_special_tokens="true")
        return [int(token) for token in self.tokenizer.encode(text)]

    def greedy(self, rows: list[list[int]], steps: int) -> list[list[int]]:
        """What follows each of `rows`, which are run together and are equally long."""
        params = self.runtime.GeneratorParams(self.model)
        length = len(rows[0]) + steps
        params.set_search_options(do_sample=False, max_length=length, batch_size=len(rows), repetition_penalty=1.0)
        generator = self.runtime.Generator(self.model, params)
        generator.append_tokens(np.array(rows, np.int32))
        drawn: list[list[int]] = [[] for _ in rows]
        while not generator.is_done():
            generator.generate_next_token()
            for row, token in zip(drawn, generator.get_next_tokens(), strict=True):
                row.append(int(token))
        return drawn
