# SPDX-License-Identifier: Apache-2.0
"""A conversation at a terminal: the messages, one answer after the other, and what /commands do to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle.cli import figures, values
from genai_bundle.cli.chat_terminal import Screen
from genai_bundle.errors import GenaiError, UsageError

if TYPE_CHECKING:
    from genai_runner.pipeline import Pipeline
    from genai_runner.replies import Reply
    from genai_runner.results import Result

Message = dict[str, Any]


class Leave(Exception):  # noqa: N818  not an error
    """The user wants to go."""


class Talk:
    """`options` are the request's. What fails leaves the conversation as it was."""

    def __init__(self, pipe: Pipeline, input_: str, options: Mapping[str, Any], screen: Screen, *, stats: bool) -> None:
        self._pipe, self._input, self._screen, self._stats = pipe, input_, screen, stats
        self.options = dict(options)
        self.messages: list[Message] = []
        self._last: Result | None = None

    def take(self, line: str) -> None:
        """One line of the user's: a command, or something to answer. `//` begins what is no command."""
        if line.startswith("/") and not line.startswith("//"):
            self._command(*line[1:].split(maxsplit=1))
        elif line.strip():
            self.say(line.removeprefix("/") if line.startswith("//") else line)

    # -- answers ------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Ask, print the answer as it comes, and remember both."""
        self._answer([*self.messages, {"role": "user", "content": text}])

    def _answer(self, messages: list[Message]) -> None:
        from genai_bundle.cli import console

        request: dict[str, Any] = {self._input: messages, **self.options}
        stream = self._pipe.stream(**request)
        try:
            with console.interrupts(stream.cancel):
                for piece in stream.replies():
                    self._show(piece)
        except KeyboardInterrupt:  # the second one: what there was until then is the answer
            pass
        finally:
            self._screen.answer("\n")
        result = self._last = stream.result
        conversation = self._pipe.conversation()  # which keeps reasoning and calls apart for the template
        conversation.settle(messages, result)
        self.messages = [dict(message) for message in conversation.messages]
        if result.finish_reason == "cancelled":
            self._screen.note("interrupted; /retry asks again, /undo takes it back")
        if self._stats:
            self._screen.note(" · ".join(brief(result)))

    def _show(self, piece: Reply) -> None:
        """Reasoning is for who watches, and dimmed; calls of tools are lines."""
        if self._screen.interactive:
            self._screen.answer(piece.reasoning, dim=True)
        self._screen.answer(piece.content)
        for call in piece.tool_calls:
            self._screen.answer(f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})\n")

    # -- commands -----------------------------------------------------------------------------------------------------

    def _command(self, name: str = "", rest: str = "") -> None:
        found = COMMANDS.get(name)
        if found is None:
            raise UsageError(f"there is no command /{name}", hint="/help lists them; // at the beginning is said as /")
        found.act(self, rest.strip())

    def help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            self._screen.note(f"  {f'/{name} {command.takes}':24} {command.about}")
        self._screen.note("Alt-Enter, or a backslash at the end of a line, goes on in the next one.")
        self._screen.note("Ctrl-C stops an answer, Ctrl-D leaves.")

    def system(self, text: str) -> None:
        held = self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None
        if not text:
            self._screen.note(held or "no system message")
            return
        rest = self.messages[1:] if held is not None else self.messages
        self.messages = [{"role": "system", "content": text}, *rest]

    def reset(self, _: str) -> None:
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]

    def undo(self, _: str) -> None:
        self.messages = self._before_question()

    def retry(self, _: str) -> None:
        before = self._before_question()
        question = self.messages[len(before)]
        chosen: dict[str, Any] = {"seed": 0, **self._pipe.manifest.generation, **self.options}
        self.options["seed"] = chosen["seed"] + 1
        self._answer([*before, question])

    def _before_question(self) -> list[Message]:
        places = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise UsageError("nothing was asked yet")
        return self.messages[: places[-1]]

    def history(self, _: str) -> None:
        for message in self.messages:
            self._screen.note(f"{message['role']}: {message['content']}")

    def save(self, path: str) -> None:
        file = self._file(path)
        file.write_text(json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        self._screen.note(f"{len(self.messages)} messages in {file}")

    def load(self, path: str) -> None:
        file = self._file(path)
        found = values.parse_json(values.read_text(file), str(file))
        if not isinstance(found, list) or not all(isinstance(one, dict) and "role" in one for one in found):
            raise UsageError("not a list of messages", where=str(file))
        self.messages = found
        self._screen.note(f"{len(found)} messages from {file}")

    @staticmethod
    def _file(path: str) -> Path:
        if not path:
            raise UsageError("no file is named", hint="Such as: /save talk.json")
        return Path(path).expanduser()

    def set(self, text: str) -> None:
        from genai_runner.options import OPTIONS, Options

        name, _, value = text.partition(" ")
        name = name.replace("-", "_")
        if not name:
            chosen = {**self._pipe.manifest.generation, **self.options}
            self._screen.note(", ".join(f"{key} {json.dumps(one)}" for key, one in chosen.items()) or "nothing is set")
            return
        if name not in OPTIONS:
            raise UsageError(f"there is no option {name!r}", hint=f"Known are {', '.join(OPTIONS)}")
        options = {key: one for key, one in self.options.items() if key != name}
        if value:
            options[name] = _value(value.strip())
        request = {key: one for key, one in options.items() if key in OPTIONS}
        Options.merge(self._pipe.manifest.generation, request)  # raises for what does not go
        self.options = options

    def stats(self, _: str) -> None:
        if self._last is None:
            raise UsageError("nothing was answered yet")
        figures.show(self._last, figures.of(self._last))

    def leave(self, _: str) -> None:
        raise Leave


def _value(text: str) -> Any:
    """JSON where it is that, else a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Command:
    """What follows its name, and what it does."""

    act: Callable[[Talk, str], None]
    takes: str
    about: str


COMMANDS: Mapping[str, Command] = {
    "help": Command(Talk.help, "", "what can be done here"),
    "system": Command(Talk.system, "[TEXT]", "set the system message, or show it"),
    "reset": Command(Talk.reset, "", "forget the conversation, but for the system message"),
    "undo": Command(Talk.undo, "", "take back the last question and its answer"),
    "retry": Command(Talk.retry, "", "answer the last question again, with the next seed"),
    "history": Command(Talk.history, "", "show the conversation"),
    "save": Command(Talk.save, "FILE", "write the conversation, as `run --messages FILE` reads it"),
    "load": Command(Talk.load, "FILE", "go on with a conversation that was saved"),
    "set": Command(Talk.set, "[OPTION [VALUE]]", "set an option, give it its default, or show what is set"),
    "stats": Command(Talk.stats, "", "figures of the last answer"),
    "exit": Command(Talk.leave, "", "leave, as Ctrl-D does"),
    "quit": Command(Talk.leave, "", "the same"),
}
"""By name, in the order of /help."""


def brief(result: Result) -> Iterator[str]:
    """A line of figures after each answer."""
    metrics = result.metrics
    yield f"{metrics.prompt_tokens} + {result.usage.completion_tokens} tokens"
    if metrics.prefix_cache_hits:
        yield f"{metrics.prefix_cache_hits} cached"
    yield f"first after {1000 * metrics.time_to_first_token_seconds:.0f} ms"
    yield f"{metrics.generation_tokens_per_second:.1f} tokens/s"
    if metrics.spec_decode_num_draft_tokens:
        yield f"{100 * metrics.spec_decode_acceptance_rate:.0f} % of drafts accepted"
    if result.finish_reason == "length":
        yield "ended by the length"


def run(talk: Talk, read: Callable[[], str], screen: Screen) -> None:
    """Turn after turn until the end of the input. A script ends with the first thing that fails."""
    while True:
        try:
            talk.take(read())
        except (EOFError, Leave):
            return
        except KeyboardInterrupt:  # while typing
            if not screen.interactive:
                raise
            screen.note("Ctrl-D leaves")
        except GenaiError as error:
            if not screen.interactive:
                raise
            screen.note(f"error: {error}")
        except OSError as error:  # of /save and /load
            if not screen.interactive or error.filename is None:
                raise
            screen.note(f"error: {error.filename}: {error.strerror}")
