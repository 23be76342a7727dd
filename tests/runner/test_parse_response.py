# SPDX-License-Identifier: Apache-2.0
"""Answers taken apart as transformers' `parse_response` does, by response templates that say what `text.reply` says."""

from __future__ import annotations

from typing import Any

import pytest

from genai_runner.replies import Reply, ReplyFormat, ToolCall
from runner import tokenizers_small as small

pytestmark = pytest.mark.torch

START = "<|start|>assistant"
TEXT = {"content": "text", "content_args": {"strip": False}}
JOINED = {**TEXT, "repeats": True, "join": ""}
"""What stands before and behind a call is one text."""


def call(name: str, arguments: str, **more: str) -> dict[str, Any]:
    return {**more, "type": "function", "function": {"name": name, "arguments": arguments}}


HERMES = (
    {"reasoning": ["<think>", "</think>"], "calls": {"open": "<tool_call>", "close": "</tool_call>"}},
    {
        "reasoning_content": {**TEXT, "open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open": "<tool_call>", "close": "</tool_call>", "content": "json", "repeats": True,
            "transform": call("{content.name}", "{content.arguments}"),
        },
        "content": JOINED,
    },
    [
        "Hello.",
        "<think>\nHm, 1 < 2.\n</think>\n\nHi.",
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        'On it. <tool_call>{"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2.5]}}</tool_call>',
        '<think>Two.</think><tool_call>{"name": "f", "arguments": {"x": "</a>"}}</tool_call>\n'
        '<tool_call>{"name": "g", "arguments": {"y": null}}</tool_call>',
        'Before <tool_call>{"name": "f", "arguments": {"deep": {"a": [true]}}}</tool_call> behind.',
        "<think>cut off",
    ],
)  # fmt: skip
NAMED = (
    {"calls": {"open": "[TOOL_CALLS]", "arguments": "[ARGS]"}},
    {
        "tool_calls": {
            "open_pattern": r"\[TOOL_CALLS\](?P<name>[\w.-]+)\[ARGS\]", "close_pattern": r"(?=\[TOOL_CALLS\])|\Z",
            "content": "json", "repeats": True, "transform": call("{name}", "{content}"),
        },
        "content": JOINED,
    },
    [
        "No call.",
        '[TOOL_CALLS]f[ARGS]{"x": 1}',
        'Two: [TOOL_CALLS]f[ARGS]{"x": "[ARGS]"}[TOOL_CALLS]g-2[ARGS]{}',
    ],
)  # fmt: skip
LISTED = (
    {"calls": {"open": "[TOOL_CALLS]"}},
    {
        "tool_calls": {
            "open": "[TOOL_CALLS]", "content": "json", "transform_each": True,
            "transform": call("{name}", "{arguments}", id="{id}"),
        },
        "content": JOINED,
    },
    [
        "No call.",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "abc"}]',
        'I ask. [TOOL_CALLS][{"name": "f", "arguments": {}, "id": "1"}, {"name": "g", "arguments": {}, "id": "2"}]',
    ],
)  # fmt: skip
HARMONY = (
    {
        "channels": {
            "begin": "<|channel|>", "message": "<|message|>", "end": ["<|end|>", "<|call|>", "<|return|>"],
            "reasoning": "analysis", "calls": "to=functions.",
        }
    },
    {
        "reasoning_content": {**JOINED, "open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
        "tool_calls": {
            "open_pattern": r"<\|channel\|>commentary to=functions\.(?P<name>[\w.-]+)[^|]*(?:<\|constrain\|>\w+)?"
                            r"<\|message\|>",
            "close": "<|call|>", "content": "json", "repeats": True, "transform": call("{name}", "{content}"),
        },
        "content": {**JOINED, "open": "<|channel|>final<|message|>", "close": ["<|return|>", "<|end|>"]},
    },
    [
        "<|channel|>final<|message|>Hello.<|return|>",
        "<|channel|>analysis<|message|>It rains.<|end|><|start|>assistant<|channel|>final<|message|>Wet.<|return|>",
        "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.weather <|constrain|>json<|message|>{"city": "Zürich"}<|call|>',
        "<|channel|>commentary to=functions.f-1<|message|>{}<|call|>",
        "<|channel|>analysis<|message|>cut off",
    ],
)  # fmt: skip
FORMATS = {"delimited": HERMES, "named": NAMED, "listed": LISTED, "channels": HARMONY}
CASES = [
    pytest.param(reply, fields, text, id=f"{name}-{number}")
    for name, (reply, fields, texts) in FORMATS.items()
    for number, text in enumerate(texts)
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    import tokenizers
    import transformers

    hf: Any = transformers
    plain = tokenizers.Tokenizer.from_str(small.tokenizer(small.BYTE_LEVEL).decode())
    return hf.PreTrainedTokenizerFast(tokenizer_object=plain)


def parsed(tokenizer: Any, fields: dict[str, Any], text: str, prefix: str = START) -> Reply:
    """Their parts in our terms."""
    found = tokenizer.parse_response(text, {"start_anchor": START, "fields": fields}, prefix=prefix)
    calls = [ToolCall(**one["function"], id=one.get("id")) for one in found.get("tool_calls", [])]
    return Reply(found.get("content", "").strip(), found.get("reasoning_content", "").strip(), calls)


@pytest.mark.parametrize(("reply", "fields", "text"), CASES)
def test_parts_are_those_of_transformers(tokenizer: Any, reply: Any, fields: Any, text: str) -> None:
    expected = parsed(tokenizer, fields, text)
    assert ReplyFormat.declared(reply).parse(text) == expected != Reply()


def test_reasoning_that_the_prompt_has_begun(tokenizer: Any) -> None:
    reply, fields, _ = HERMES
    text = "Hm.\n</think>\n\nHi."
    expected = parsed(tokenizer, fields, text, START + "<think>\n")
    assert ReplyFormat.declared(reply).parse(text) == expected == Reply("Hi.", "Hm.")
