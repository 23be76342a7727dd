# SPDX-License-Identifier: Apache-2.0
"""Answers taken apart: what chat templates write of calls and reasoning is read back from their text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import genai_runner
from genai_bundle.builder.reply import reply_of
from genai_runner.chat import render_chat
from genai_runner.replies import Reply, ReplyFormat, ReplyStream, ToolCall
from genai_runner.text import TextCodec
from runner import tokenizers_small as small

HERMES = ReplyFormat(("<think>", "</think>"), "<tool_call>", "</tool_call>")
NAMED = ReplyFormat(None, "[TOOL_CALLS]", "", "[ARGS]")
BARE = ReplyFormat(None, "")
CHANNELS = {
    "begin": "<|channel|>",
    "message": "<|message|>",
    "end": ["<|end|>", "<|call|>", "<|return|>"],
    "reasoning": "analysis",
    "calls": "to=functions.",
}
HARMONY = ReplyFormat.declared({"channels": CHANNELS})
ARGUMENTS = {"city": "Zürich", "days": 3, "units": ["C", "F"]}
CALL = ToolCall("weather", ARGUMENTS)
READ = {
    "Bielik-11B-v3.0-Instruct",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "Reka-Edge",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "mistralai-Ministral-3-14B-Reasoning-2512",
    "unsloth-mistral-Devstral-Small-2507",
}


def assistant_part(template: str) -> str | None:
    """What a template writes of an answer that calls a tool, without the special tokens behind it."""
    tool = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
    call = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    asked: list[dict[str, Any]] = [{"role": "user", "content": "How is the weather?"}]
    answered = [*asked, {"role": "assistant", "content": "", "tool_calls": [call]}]
    special = {"tools": [tool], "bos_token": "<s>", "eos_token": "</s>"}
    try:
        before = render_chat(template, messages=asked, **special)
        whole = render_chat(template, messages=answered, add_generation_prompt=False, **special)
    except Exception:
        return None
    same = next((at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    text = whole[same:]
    for end in ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>"):
        text = text.split(end)[0]
    return text


def form_of(template: str) -> ReplyFormat:
    """What a build declares for it."""
    return ReplyFormat.declared(reply_of(template).get("reply", {}))


@pytest.mark.shared
def test_messages_in_channels_that_a_template_writes_are_read_back(shared: Path) -> None:
    template = (shared / "tokenizers" / "gpt-oss" / "chat_template.jinja").read_text(encoding="utf-8")
    assert reply_of(template) == {"reply": {"channels": CHANNELS}}
    asked: list[dict[str, Any]] = [{"role": "user", "content": "How is the weather?"}]
    call = {"name": "weather", "arguments": ARGUMENTS}
    called = {"role": "assistant", "content": "I look it up.", "tool_calls": [call]}
    told = {"role": "assistant", "content": "Wet.", "thinking": "It rains."}

    def answer(*messages: dict[str, Any]) -> str:
        before = render_chat(template, messages=asked)
        whole = render_chat(template, messages=[*asked, *messages], add_generation_prompt=False)
        assert whole.startswith(before)
        return whole[len(before) :]

    for text, expected in (
        (answer(called), Reply("", "I look it up.", [CALL])),
        (answer(told), Reply("Wet.")),
        (answer(called, told), Reply("Wet.", "I look it up.", [CALL])),
    ):
        assert form_of(template).parse(text) == expected
        stream = ReplyStream(HARMONY)
        pieces = [*map(stream.push, text), stream.flush()]
        assert sum(pieces, Reply()) == expected
        assert len([piece for piece in pieces if piece.content or piece.reasoning]) > 3


@pytest.mark.parametrize(
    "template",
    [None, "{% for m in messages %}{{ m.content }}{% endfor %}", "<tool_call><function=", "<|channel|>", "<think>"],
)
def test_a_build_declares_nothing_that_a_template_does_not_show(template: str | None) -> None:
    assert reply_of(template) == {}


@pytest.mark.shared
def test_calls_that_templates_write_are_read_back(shared: Path) -> None:
    read = set()
    for path in sorted((shared / "templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        form, text = form_of(template), assistant_part(template)
        if form.calls is None or text is None:
            continue
        found = form.parse(text).tool_calls
        if found:
            assert [(one.name, one.arguments) for one in found] == [("weather", ARGUMENTS)], path.stem
            read.add(path.stem)
    assert read == READ


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (HERMES, "<think>\nHm.\n</think>\n\nHi.", Reply("Hi.", "Hm.")),
        (HERMES, "Hm.\n</think>\nHi.", Reply("Hi.", "Hm.")),
        (HERMES, "<think>cut", Reply("", "cut")),
        (
            HERMES,
            'On it. <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
            Reply("On it.", "", [ToolCall("f", {})]),
        ),
        (HERMES, "a <tool_call>nonsense</tool_call> b", Reply("a <tool_call>nonsense</tool_call> b")),
        (
            HERMES,
            '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>\n<tool_call>{"name": "g"}</tool_call>',
            Reply("", "", [ToolCall("f", {"x": 1}), ToolCall("g", {})]),
        ),
        (
            NAMED,
            '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}',
            Reply("", "", [ToolCall("f", {"x": 1}), ToolCall("g", {})]),
        ),
        (
            NAMED,
            '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "abc"}]',
            Reply("", "", [ToolCall("f", {"x": 1}, "abc")]),
        ),
        (BARE, '{"name": "f", "parameters": {"x": 1}}', Reply("", "", [ToolCall("f", {"x": 1})])),
        (BARE, '{"answer": 42}', Reply('{"answer": 42}')),
        (BARE, "It is {fine}.", Reply("It is {fine}.")),
        (ReplyFormat(), "<think> [TOOL_CALLS] ", Reply("<think> [TOOL_CALLS] ")),
        (
            HARMONY,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.f-1 "
            '<|constrain|>json<|message|>{"x": "<|channel|>"}<|call|>',
            Reply("", "Hm.", [ToolCall("f-1", {"x": "<|channel|>"})]),
        ),
        (HARMONY, "<|channel|>commentary to=functions.f<|message|>{<|call|>", Reply("{")),
        (HARMONY, "<|channel|>analysis<|message|>cut", Reply("", "cut")),
        (HARMONY, "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|chan", Reply("", "a")),
        (HARMONY, "no messages<|return|>", Reply("no messages")),
    ],
)
def test_parts_of_an_answer(form: ReplyFormat, text: str, expected: Reply) -> None:
    assert form.parse(text) == expected


PARTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    '{"name": "f", "arguments": {"x": 1}}',
    " ",
    "\n",
    "ab",
    "<",
    "{}",
    *("<|channel|>", "analysis", "to=functions.f", "<|message|>", "<|end|>", "<|call|>"),
]


@given(
    st.lists(st.sampled_from(PARTS), max_size=8),
    st.sampled_from([HERMES, NAMED, BARE, HARMONY, ReplyFormat()]),
    st.data(),
)
def test_what_is_streamed_joins_to_the_whole(parts: list[str], form: ReplyFormat, data: st.DataObject) -> None:
    text = "".join(parts)
    whole, streamed = ReplyStream(form), ReplyStream(form)
    expected = whole.push(text) + whole.flush()
    found, at = Reply(), 0
    while at < len(text):
        size = data.draw(st.integers(1, 6))
        found += streamed.push(text[at : at + size])
        at += size
    assert found + streamed.flush() == expected


def test_delimiters_that_are_special_tokens_are_kept_for_this() -> None:
    codec = TextCodec(small.tokenizer(small.BYTE_LEVEL), eos=[2])
    ids = [1, *(int(codec.tokenizer.token_to_id(letter)) for letter in "cat"), 2]
    assert codec.decode(ids) == "cat"
    assert codec.decode_keeping(ids, ["<s>", "absent"]) == "<s>cat"
    assert codec.decode_keeping(ids, ["</s>", "<s>"]) == "<s>cat</s>"


def test_parts_between_special_tokens_are_told_apart_up_to_the_stop_string() -> None:
    codec = TextCodec(small.tokenizer(small.BYTE_LEVEL), eos=[2], reply={"reasoning": ["<s>", "</s>"]})
    ids = [1, *(int(codec.tokenizer.token_to_id(letter)) for letter in "ca"), 2, int(codec.tokenizer.token_to_id("t"))]
    assert codec.reply(ids, codec.decode(ids)) == Reply("t", "ca")
    assert codec.reply(ids, "ca", stop=["t"]) == Reply("", "ca")


@pytest.mark.parametrize("stop", [(), ("i",)])
def test_replies_come_in_parts_that_join_to_the_whole(sample: Path, stop: tuple[str, ...]) -> None:
    """Two tokens that the model writes here delimit its reasoning, and are special for this."""
    greedy = {"max_tokens": 40, "temperature": 0}
    with genai_runner.load(sample) as pipe:
        codec = pipe._text
        once = pipe("Once upon a time", **greedy)
        words = [codec.tokenizer.id_to_token(id_) for id_ in once.tokens]
        codec._skipped = frozenset({words[8], words[20]})
        codec.form = ReplyFormat((words[8], words[20]))
        stream = pipe.stream("Once upon a time", **greedy, stop=list(stop))
        pieces = list(stream.replies())
    assert stream.result.reply == sum(pieces, Reply())
    assert len([piece for piece in pieces if piece.reasoning]) > (3 if not stop else 0)
    assert not stop or "i" not in stream.result.reply.content + stream.result.reply.reasoning


def test_a_conversation_keeps_the_parts_apart(sample: Path) -> None:
    with genai_runner.load(sample) as pipe:
        conversation = pipe.conversation(max_tokens=2)
        result = conversation.say("Hello")
        assert result.reply == Reply(result.text)
        text = '<think>Hm.</think>Wait. <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
        conversation.settle([], replace(result, text=text, reply=HERMES.parse(text)))
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    expected = {"role": "assistant", "content": "Wait.", "reasoning_content": "Hm.", "tool_calls": [call]}
    assert conversation.messages == [expected]
