# SPDX-License-Identifier: Apache-2.0
"""What an answer of a chat model is made of: what it says, how it came to it, and the tools that it calls.

Delimiters tell the parts apart. They stand in the chat template, which writes earlier answers with them, so that the
template says which of them a model uses; a template that shows none gives answers that are content only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A tool's name, the arguments for it, and the call's id where the model gives one."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class Reply:
    """A whole answer, or what a piece of text adds to it."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def __add__(self, other: Reply) -> Reply:
        calls = [*self.tool_calls, *other.tool_calls]
        return Reply(self.content + other.content, self.reasoning + other.reasoning, calls)


@dataclass(frozen=True)
class ReplyFormat:
    """The delimiters of an answer's parts.

    reasoning: what stands before and behind it. calls: what stands before each call, or several in a list; "" where an
    answer that is a call is that and nothing else. calls_end: what stands behind, "" where the next call or the end
    does. arguments: what stands between a name and its arguments, where a call is not one JSON object.
    """

    reasoning: tuple[str, str] | None = None
    calls: str | None = None
    calls_end: str = ""
    arguments: str | None = None

    @staticmethod
    def of_template(template: str) -> ReplyFormat:
        """What a chat template shows. Calls that are no JSON are not read: such an answer is content."""
        pairs = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
        reasoning = next((pair for pair in pairs if pair[1] in template), None)
        if "[TOOL_CALLS]" in template:
            return ReplyFormat(reasoning, "[TOOL_CALLS]", "", "[ARGS]" if "[ARGS]" in template else None)
        if "<tool_call>" in template and "<arg_key>" not in template and "<function=" not in template:
            return ReplyFormat(reasoning, "<tool_call>", "</tool_call>")
        if "<|python_tag|>" in template and '"parameters": ' in template:
            return ReplyFormat(reasoning, "")
        return ReplyFormat(reasoning)

    @property
    def delimiters(self) -> tuple[str, ...]:
        """All of them: some are special tokens, which decoding leaves out unless told to keep them."""
        return tuple(filter(None, (*(self.reasoning or ()), self.calls, self.calls_end, self.arguments)))

    def parse(self, text: str) -> Reply:
        """The parts of a whole answer. Reasoning that has an end and no beginning was begun by the prompt."""
        begun = False
        if self.reasoning is not None and self.reasoning[1] in text:
            begin, end = self.reasoning
            begun = begin not in text[: text.index(end)]
        stream = ReplyStream(self, begun)
        return stream.push(text) + stream.flush()


class ReplyStream:
    """Text in, what it adds to the answer out. All of it together is what `ReplyFormat.parse` gives.

    begun: whether the prompt has begun the reasoning.
    """

    def __init__(self, form: ReplyFormat, begun: bool = False) -> None:
        self._form = form
        self._part = "reasoning" if begun else "content"
        self._waiting = ""  # text that belongs to no part yet
        self._blank = {"content": "", "reasoning": ""}  # white space that may turn out to be the end
        self._some = {"content": False, "reasoning": False}

    def push(self, piece: str) -> Reply:
        """What is certain after this piece. A call comes when it is whole."""
        self._waiting += piece
        reply = Reply()
        while (found := self._border()) is not None:
            at, border = found
            before, self._waiting = self._waiting[:at], self._waiting[at + len(border) :]
            reply += self._called(before, border) if self._part == "call" else self._said(before)
            self._part = self._behind(border)
        if self._part == "call" or self._may_be_call():
            return reply
        held = _beginning(self._waiting, self._borders())
        certain, self._waiting = self._waiting[: len(self._waiting) - held], self._waiting[len(self._waiting) - held :]
        return reply + self._said(certain)

    def flush(self) -> Reply:
        """What was held back: the answer is over."""
        rest, self._waiting = self._waiting, ""
        return self._called(rest, "") if self._part == "call" or self._may_be_call(rest) else self._said(rest)

    def _borders(self) -> tuple[str, ...]:
        """The delimiters that end the part."""
        form = self._form
        if self._part == "reasoning":
            return (form.reasoning[1],) if form.reasoning else ()
        if self._part == "call":
            return tuple(filter(None, (form.calls_end or form.calls,)))
        return tuple(filter(None, (form.reasoning and form.reasoning[0], form.calls)))

    def _border(self) -> tuple[int, str] | None:
        found = [(at, one) for one in self._borders() if (at := self._waiting.find(one)) >= 0]
        return min(found, default=None)

    def _behind(self, border: str) -> str:
        if self._form.reasoning and border == self._form.reasoning[0]:
            return "reasoning"
        return "call" if border == self._form.calls else "content"

    def _may_be_call(self, rest: str | None = None) -> bool:
        """Whether an answer without delimiters of calls may be one."""
        text = (self._waiting if rest is None else rest).lstrip()
        bare = self._form.calls == "" and self._part == "content" and not self._some["content"]
        return bare and text[:1] in ("{", "[")

    def _said(self, text: str) -> Reply:
        """`text` of the part, without white space at its beginning and end."""
        text = self._blank[self._part] + text
        if not self._some[self._part]:
            text = text.lstrip()
        kept = text.rstrip()
        self._blank[self._part] = text[len(kept) :]
        self._some[self._part] |= bool(kept)
        return Reply(reasoning=kept) if self._part == "reasoning" else Reply(content=kept)

    def _called(self, text: str, border: str) -> Reply:
        calls = _calls(text.strip(), self._form.arguments)
        if calls:
            return Reply(tool_calls=calls)
        self._part = "content"  # no call after all: nothing of it is lost
        end = border if border == self._form.calls_end else ""
        return self._said(f"{self._form.calls}{text}{end}")


def _beginning(text: str, borders: tuple[str, ...]) -> int:
    """The length of the longest end of `text` that a delimiter begins with."""
    longest = min(max(map(len, borders), default=1) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(one.startswith(text[-n:]) for one in borders)), 0)


def _calls(text: str, arguments: str | None) -> list[ToolCall]:
    """The calls that a text holds, none where it is something else."""
    if arguments is not None and not text.startswith(("[", "{")):
        name, _, rest = text.partition(arguments)
        value = _json(rest)
        return [ToolCall(name.strip(), value)] if name.strip() and isinstance(value, dict) else []
    value = _json(text)
    found = [_call(one) for one in (value if isinstance(value, list) else [value])]
    return [one for one in found if one is not None] if all(found) else []


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    given = value.get("arguments", value.get("parameters", {}))
    given = _json(given) if isinstance(given, str) else given
    id_ = value.get("id")
    return ToolCall(value["name"], given, id_ if isinstance(id_, str) else None) if isinstance(given, dict) else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
