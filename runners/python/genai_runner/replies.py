# SPDX-License-Identifier: Apache-2.0
"""What an answer of a chat model is made of: what it says, how it came to it, and the tools that it calls.

The bundle declares in `text.reply` what tells the parts apart: delimiters, or channels. An answer of a bundle that
declares nothing is content only. Normative text: spec/pipeline.md, "Parts of an answer".
"""

from __future__ import annotations

import json
import re
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
class Channels:
    """An answer of messages: header, `message`, body, one of `end`. `begin` stands before the channel's name.

    reasoning: the channel that is reasoning. calls: what stands before a tool's name in the header of a call.
    """

    begin: str
    message: str
    end: tuple[str, ...]
    reasoning: str | None = None
    calls: str | None = None


@dataclass(frozen=True)
class ReplyFormat:
    """The delimiters of an answer's parts.

    reasoning: what stands before and behind it. calls: what stands before each call, or several in a list; "" where an
    answer that is a call is that and nothing else. calls_end: what stands behind, "" where the next call or the end
    does. arguments: what stands between a name and its arguments, where a call is not one JSON object. channels: in
    the place of all these.
    """

    reasoning: tuple[str, str] | None = None
    calls: str | None = None
    calls_end: str = ""
    arguments: str | None = None
    channels: Channels | None = None

    @staticmethod
    def declared(reply: Mapping[str, Any]) -> ReplyFormat:
        """A manifest's `text.reply`."""
        if "channels" in reply:
            given = reply["channels"]
            return ReplyFormat(channels=Channels(**{**given, "end": tuple(given["end"])}))
        before, behind = reply.get("reasoning", (None, None))
        calls = reply.get("calls")
        opened = None if calls is None else calls.get("open", "")
        calls = calls or {}
        reasoning = (before, behind) if before is not None else None
        return ReplyFormat(reasoning, opened, calls.get("close", ""), calls.get("arguments"))

    @property
    def delimiters(self) -> tuple[str, ...]:
        """All of them: some are special tokens, which decoding leaves out unless told to keep them."""
        if self.channels is not None:
            return (self.channels.begin, self.channels.message, *self.channels.end)
        return tuple(filter(None, (*(self.reasoning or ()), self.calls, self.calls_end, self.arguments)))

    @property
    def plain(self) -> bool:
        """Whether an answer is content and nothing else."""
        return self == ReplyFormat()

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
        self._parts = _Messages(form.channels) if form.channels else _Delimited(form, begun)
        self._plain = form.plain

    def push(self, piece: str) -> Reply:
        """What is certain after this piece. A call comes when it is whole."""
        return Reply(piece) if self._plain else self._parts.push(piece)

    def flush(self) -> Reply:
        """What was held back: the answer is over."""
        return self._parts.flush()


class _Messages:
    """An answer of messages in channels."""

    def __init__(self, form: Channels) -> None:
        self._form = form
        self._header: str | None = None  # of the message whose body it is in
        self._waiting = ""
        self._some = False

    def push(self, piece: str) -> Reply:
        self._waiting += piece
        reply = Reply()
        while (found := _first(self._waiting, self._borders())) is not None:
            at, border = found
            before, self._waiting = self._waiting[:at], self._waiting[at + len(border) :]
            if self._header is None:
                self._header, self._some = before, True
            else:
                reply += self._said(before)
                self._header = None
        if self._header is None or self._name(self._form.calls):
            return reply
        at = len(self._waiting) - _beginning(self._waiting, self._borders())
        certain, self._waiting = self._waiting[:at], self._waiting[at:]
        return reply + self._said(certain)

    def flush(self) -> Reply:
        """A header without a body says nothing; an answer without messages is content."""
        rest, self._waiting = self._waiting, ""
        if self._header is not None:
            return self._said(rest)
        ends = _first(rest, self._form.end)
        return Reply() if self._some or self._form.begin in rest else Reply(rest[: ends[0]] if ends else rest)

    def _borders(self) -> tuple[str, ...]:
        return (self._form.message,) if self._header is None else self._form.end

    def _said(self, body: str) -> Reply:
        tool = self._name(self._form.calls)
        arguments = _json(body) if tool else None
        if tool and isinstance(arguments, dict):
            return Reply(tool_calls=[ToolCall(tool, arguments)])
        thought = self._form.reasoning is not None and self._name(self._form.begin) == self._form.reasoning
        return Reply(reasoning=body) if thought and not tool else Reply(body)

    def _name(self, before: str | None) -> str:
        """What the header names behind `before`, "" where it does not."""
        _, found, rest = (self._header or "").partition(before) if before else ("", "", "")
        name = re.match(r"[\w.-]*", rest, re.ASCII) if found else None
        return name[0] if name else ""


class _Delimited:
    """An answer whose parts stand between delimiters."""

    def __init__(self, form: ReplyFormat, begun: bool) -> None:
        self._form = form
        self._part = "reasoning" if begun else "content"
        self._waiting = ""  # text that belongs to no part yet
        self._blank = {"content": "", "reasoning": ""}  # white space that may turn out to be the end
        self._some = {"content": False, "reasoning": False}

    def push(self, piece: str) -> Reply:
        self._waiting += piece
        reply = Reply()
        while (found := _first(self._waiting, self._borders())) is not None:
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


def _first(text: str, borders: tuple[str, ...]) -> tuple[int, str] | None:
    """The first delimiter in `text`, and where it is."""
    return min(((at, one) for one in borders if (at := text.find(one)) >= 0), default=None)


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
