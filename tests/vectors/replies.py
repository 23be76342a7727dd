# SPDX-License-Identifier: Apache-2.0
"""What tells the parts of an answer apart, and declarations of it that a reader refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .manifest_faults import fault
from .manifests import CHAT, CHAT_MEMBERS, Case, change

REPLY = ("text", "reply")
CALLS = {"open": "<call>", "close": "</call>", "arguments": "<args>", "x-note": None}
DELIMITERS = {"reasoning": ["<think>", "</think>"], "calls": CALLS, "x-note": None}
CHANNELS = {"begin": "<c>", "message": "<m>", "end": ["<e>", "<f>"], "reasoning": "analysis", "calls": "to="}


def valid() -> Iterator[Case]:
    """Documents that every reader accepts."""

    def case(name: str, title: str, reply: dict[str, Any]) -> Case:
        return Case(name, title, change(CHAT, (*REPLY, reply)), CHAT_MEMBERS)

    yield case("reply", "Delimiters of reasoning and of calls", DELIMITERS)
    yield case("channels", "An answer of messages, each in a channel", {"channels": {**CHANNELS, "x-note": None}})
    yield case("bare-calls", "An answer that is a call is nothing else", {"calls": {}})


def faults() -> Iterator[Case]:
    """The invalid cases."""
    yield fault("M7", "no-message", "Nothing ends a header", "channels", (*REPLY, "channels", "message", ...))
    yield fault("M8", "unknown-part", "A part of answers that does not exist", "reply", (*REPLY, "mood", ["a", "b"]))
    yield fault("M9", "delimiter-empty", "A delimiter without a character", "reply", (*REPLY, "calls", "close", ""))
    yield fault("M9", "delimiter-one", "Reasoning without an end", "reply", (*REPLY, "reasoning", ["<think>"]))
    yield fault("M9", "no-ends", "Bodies that nothing ends", "channels", (*REPLY, "channels", "end", []))
    yield fault("M28", "channels-beside", "Channels and delimiters", "reply", (*REPLY, "channels", CHANNELS))
    yield fault("M28", "close-alone", "An end of calls without a beginning", "reply", (*REPLY, "calls", "open", ...))
