# SPDX-License-Identifier: Apache-2.0
"""What spec/pipeline.md says of a request's end: capacity, finish_reason, outputs, inputs that were left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import genai_runner
from genai_bundle.errors import GenaiError, UsageError
from runner.tiny import bundle, counter
from spec.recipes import LETTERS, build


def test_r16_a_full_context_ends_with_length_and_a_longer_prompt_is_refused(tmp_path: Path) -> None:
    for literal in (False, True):
        with genai_runner.load(counter(tmp_path / f"{literal}.genai"), literal=literal) as pipe:
            result = pipe(ids=[[0] * 60], max_tokens=50)
            assert (len(result.tokens), result.finish_reason) == (4, "length")
            for length in (64, 65):
                with pytest.raises(UsageError):
                    pipe(ids=[[0] * length])


def test_finish_reason_is_that_of_the_last_loop_that_can_stop(tmp_path: Path) -> None:
    """spec/pipeline.md, finish_reason: a loop with `max` alone does not count."""
    more = {"loop": {"max": 1, "do": [{"run": "zeros@1", "with": {"shape": [1]}, "out": {"y": "nothing"}}]}}
    plain = counter(tmp_path / "plain.genai")
    with genai_runner.load(plain) as pipe:
        steps = json.loads(pipe.bundle.read("manifest.json"))["steps"]
        assert pipe(ids=[[1]], max_tokens=3).finish_reason == "length"
    with genai_runner.load(counter(tmp_path / "more.genai", steps=[*steps, more])) as pipe:
        assert pipe(ids=[[1]], max_tokens=3).finish_reason == "length"


def test_an_optional_port_of_an_op_stays_unbound_where_the_input_is_missing(tmp_path: Path) -> None:
    """spec/pipeline.md, if (P13)."""
    recipe = LETTERS.replace("in: {messages: messages}", "in: {messages: messages, tools: tools}")
    path = build(recipe.replace('messages: "messages?"}', 'messages: "messages?", tools: "messages?"}'), tmp_path)
    with genai_runner.load(path) as pipe:
        assert pipe(messages=[{"role": "user", "content": "c"}], max_tokens=2).text == "d e"


@pytest.mark.parametrize(
    ("given", "declared", "dims"),
    [
        ("i64", {"type": "i32", "dims": ["N"]}, [3]),
        ("f32", {"type": "f16", "dims": [3]}, [3]),
        ("i64", {"type": "i64", "dims": ["T*", "N"]}, [1, 3]),
        ("f32", {"type": "f32", "dims": [2]}, None),
        ("f32", {"type": "i64", "dims": ["N"]}, None),
    ],
    ids=["integers", "floats", "rank", "other dims", "other kind"],
)
def test_r17_outputs_are_what_the_manifest_declares(
    given: str, declared: dict[str, Any], dims: list[int] | None, tmp_path: Path
) -> None:
    manifest = {
        "inputs": {"x": {"type": given, "dims": ["N"]}},
        "outputs": {"y": declared},
        "steps": [{"emit": {"y": "x"}}],
    }
    with genai_runner.load(bundle(tmp_path / "x.genai", {}, manifest)) as pipe:
        if dims is None:
            with pytest.raises(GenaiError, match="'y'"):
                pipe(x=[1, 2, 3])
        else:
            found = pipe(x=[1, 2, 3]).outputs["y"]
            assert (found.dtype.kind, found.dtype.itemsize * 8) == (declared["type"][0], int(declared["type"][1:]))
            assert list(found.shape) == dims
