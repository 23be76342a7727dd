# SPDX-License-Identifier: Apache-2.0
"""Several turns with a chat model: who said what, and what was computed for it.

Each turn's prompt is rendered by the template as a whole, as a request of its own would be, so that the answers are the
same; what earlier turns computed for its beginning is kept, so that only what is new is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genai_bundle.errors import UsageError

from .chat import Message
from .prefix_cache import PrefixCache
from .replies import Reply
from .results import Result, Stream
from .values import Value

if TYPE_CHECKING:
    from .pipeline import Pipeline

MEMORY = 1 << 30
"""Bytes that a conversation keeps at most, where the pipeline has no `prefix_cache` that is shared by all requests."""

Said = str | Message | Sequence[Message]


class Turn(Iterator[Value]):
    """An answer as it comes. Once it is over, the conversation has what was said."""

    def __init__(self, conversation: Conversation, asked: list[Message], stream: Stream) -> None:
        self._conversation, self._asked, self._stream = conversation, asked, stream

    def __next__(self) -> Value:
        try:
            return next(self._stream)
        except StopIteration:
            self._conversation.settle(self._asked, self._stream.result)
            raise

    def replies(self) -> Iterator[Reply]:
        """The answer's parts as they come, in the place of its pieces."""
        yield from self._stream.replies()
        self._conversation.settle(self._asked, self._stream.result)

    def cancel(self) -> None:
        """End the answer after the token that is being computed; what there is of it is the answer."""
        self._stream.cancel()

    @property
    def result(self) -> Result:
        """The whole result; reads the answer to its end first. Raises what the request failed with."""
        for _ in self:
            pass
        return self._stream.result


class Conversation:
    """`messages` is all that was said: change it as you like, the next turn is computed for what it holds then.

    A turn that fails leaves it as it was. One turn at a time.
    """

    def __init__(
        self, pipe: Pipeline, system: str | None, tools: Sequence[Mapping[str, Any]] | None, **options: Any
    ) -> None:
        inputs = pipe.manifest.inputs
        found = [name for name, declared in inputs.items() if declared.type == "messages"]
        if not found:
            raise UsageError(f"{pipe.manifest.name!r} takes no messages", hint="Give it a prompt instead")
        if tools is not None:
            if "tools" not in inputs:
                raise UsageError(f"{pipe.manifest.name!r} takes no tools", hint="Its pipeline has no such input")
            options["tools"] = tools
        self._pipe = pipe if pipe.prefix_cache is not None else pipe.remembering(PrefixCache(MEMORY))
        self._input, self.options = found[0], options
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def say(self, said: Said, **options: Any) -> Result:
        """Say a text as the user, or messages such as the result of a tool, and get the whole answer."""
        return self.stream(said, **options).result

    def stream(self, said: Said, **options: Any) -> Turn:
        """The same, with the answer as it comes. `options` go before those of the conversation, for this turn."""
        if isinstance(said, str):
            said = {"role": "user", "content": said}
        new = [said] if isinstance(said, Mapping) else list(said)
        return self._turn([*self.messages, *new], options)

    def retry(self, **options: Any) -> Result:
        """Answer the last turn once more, with another seed or other options: the same ones give the same answer."""
        end = self._last_answer()
        return self._turn(self.messages[:end], options).result

    def undo(self) -> None:
        """Take back the last turn: the answer, and all that was said for it since the answer before."""
        end = self._last_answer()
        while end and self.messages[end - 1]["role"] not in ("assistant", "system"):
            end -= 1
        self.messages = self.messages[:end]

    def settle(self, asked: Sequence[Message], result: Result) -> None:
        """Take up what was asked and answered: with calls and reasoning apart, so that the template writes them."""
        reply, answer = result.reply or Reply(result.text), dict[str, Any](role="assistant", content=result.text)
        if reply.tool_calls or reply.reasoning:
            answer["content"] = reply.content
        if reply.reasoning:
            answer["reasoning_content"] = reply.reasoning
        if reply.tool_calls:
            answer["tool_calls"] = [
                {"type": "function", "function": {"name": one.name, "arguments": dict(one.arguments)}}
                | ({"id": one.id} if one.id else {})
                for one in reply.tool_calls
            ]
        self.messages = [*asked, answer]

    def _turn(self, messages: list[Message], options: Mapping[str, Any]) -> Turn:
        request: dict[str, Any] = {self._input: messages, **self.options, **options}
        return Turn(self, messages, self._pipe.stream(**request))

    def _last_answer(self) -> int:
        places = [at for at, message in enumerate(self.messages) if message["role"] == "assistant"]
        if not places:
            raise UsageError("nothing was answered yet")
        return places[-1]
