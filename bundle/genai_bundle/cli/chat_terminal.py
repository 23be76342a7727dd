# SPDX-License-Identifier: Apache-2.0
"""Where a chat's lines come from and go to: a terminal with line editing, a plain one, or a script on stdin."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PROMPT, MORE = "> ", "… "
BACKSLASH = "\\"
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a model must not send to a terminal: it could move the cursor, rename the window, or worse."""

ReadLine = Callable[[str], str]


class Screen:
    """What is shown. Answers go to stdout, all else to stderr; only a terminal sees escape codes."""

    def __init__(self, interactive: bool) -> None:
        self.interactive = interactive
        self._dims = interactive and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def answer(self, piece: str, *, dim: bool = False) -> None:
        """A piece of what the model says."""
        if self.interactive:
            piece = CONTROLS.sub("\N{REPLACEMENT CHARACTER}", piece)
        sys.stdout.write(self._dimmed(piece) if dim and piece else piece)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line from the program."""
        sys.stderr.write((self._dimmed(text) if self.interactive else text) + "\n")
        sys.stderr.flush()

    def _dimmed(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._dims else text


def joined_lines(read: ReadLine) -> str:
    """One turn: a line, and the next ones as long as they end with a backslash. EOFError where there is none."""
    lines = [read(PROMPT)]
    while lines[-1].endswith(BACKSLASH):
        lines[-1] = lines[-1].removesuffix(BACKSLASH)
        try:
            lines.append(read(MORE))
        except EOFError:
            break
    return "\n".join(lines)


def script(_prompt: str) -> str:
    """The next line of stdin, which nobody types."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


def editor(words: Sequence[str], history: Path | None) -> ReadLine | None:
    """A line editor with history and completion of `words`; None where prompt_toolkit is not installed.

    Enter sends, Alt-Enter begins another line. The history is this chat's, or that of a file.
    """
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings
    except ImportError:
        return None
    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)) if history else InMemoryHistory(),
        completer=WordCompleter(list(words), sentence=True),
        complete_while_typing=False,
        key_bindings=bindings,
        prompt_continuation=MORE,
    )
    return session.prompt


def plain(prompt: str) -> str:
    """A line of a terminal, with what editing Python itself has."""
    with suppress(ImportError):  # Windows, which edits lines itself
        import readline  # noqa: F401  to import it is to have it
    return input(prompt)
