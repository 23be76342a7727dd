# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle chat``: turns, commands, scripts on stdin, and a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.samples import command, doubler, talker

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It counts on from the last word of the conversation."""
    return talker(tmp_path_factory.mktemp("chat") / "talker.genai")


def test_each_line_of_a_script_is_a_turn_and_only_answers_are_printed(bundle: Path) -> None:
    done = command("chat", bundle, stdin="four\n\nsix\r\n")
    assert (done.code, done.out, done.err) == (0, "five six seven\nseven\n", "")


def test_the_conversation_goes_into_every_turn(sample: Path, tmp_path: Path) -> None:
    lines = "What is your name?\nWhat colour is the sky?\n"
    done = command("chat", sample, "--temperature", "0", "--max-tokens", "12", "--system", "Be brief.", stdin=lines)
    first, second = done.out.split("\n", 1)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is your name?"}]
    file = tmp_path / "talk.json"

    def answer() -> str:
        file.write_text(json.dumps(talk))
        run = command("run", sample, "--messages", file, "--temperature", "0", "--max-tokens", "12")
        return run.out.removesuffix("\n")

    assert answer() == first
    talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "What colour is the sky?"}]
    assert answer() == second.removesuffix("\n")


def test_a_backslash_goes_on_in_the_next_line(bundle: Path) -> None:
    done = command("chat", bundle, stdin="one\\\nfive\n/history\nsix\\")
    assert done.out == "six seven\nseven\n"
    assert "user: one\nfive\nassistant: six seven\n" in done.err


def test_commands_change_the_conversation(bundle: Path) -> None:
    script = "/system one\nfive\nthree\n/undo\n/retry\n/history\n/reset\n/system\n/history\n/exit\nfour\n"
    done = command("chat", bundle, stdin=script)
    assert done.out == "six seven\nfour five six seven\nsix seven\n"
    assert done.err == "system: one\nuser: five\nassistant: six seven\none\nsystem: one\n"


def test_a_conversation_is_saved_and_loaded(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    assert command("chat", bundle, stdin=f"five\n/save {file}\n").code == 0
    assert json.loads(file.read_text())[1] == {"role": "assistant", "content": "six seven"}
    assert command("run", bundle, "--messages", file, "--message", "four").out == "five six seven\n"
    done = command("chat", bundle, "--load", file, stdin=f"/reset\n/load {file}\n/undo\n/history\n/retry\n")
    assert (done.code, done.err.count("\n")) == (2, 3)
    assert "nothing was asked yet" in done.err


def test_options_are_set_and_given_back(bundle: Path) -> None:
    script = "/set max_tokens 1\none\n/set min-p 0.1\n/set\n/set max_tokens\nfour\n"
    done = command("chat", bundle, "--seed", "3", stdin=script)
    assert done.out == "two\nfive six seven\n"
    assert done.err == "seed 3, max_tokens 1, min_p 0.1\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/dance", "no command /dance"),
        ("/set heat 3", "no option 'heat'"),
        ("/set top_p 3", "top_p"),
        ("/save", "no file is named"),
        ("/load nowhere.json", "No such file"),
        ("/stats", "nothing was answered"),
        (" ".join(["one"] * 70), "leaves no room"),
    ],
)
def test_a_script_ends_with_its_first_mistake(bundle: Path, line: str, words: str) -> None:
    done = command("chat", bundle, stdin=f"{line}\nfive\n")
    assert (done.code, done.out.strip(), done.err.count("\n")) == (2, "", 1)
    assert words in done.err


def test_figures_are_shown_when_asked_for(bundle: Path) -> None:
    done = command("chat", bundle, "--stats", stdin="five\n/stats\n")
    assert done.out == "six seven\n"
    assert re.match(r"1 \+ 3 tokens · first after \d+ ms · [\d.]+ tokens/s\n", done.err)
    assert "3 new tokens" in done.err


def test_a_turn_computes_only_what_is_new(sample: Path) -> None:
    lines = "Tell me a story about a small boat.\nAnd about a dog?\n"
    options = ["--temperature", "0", "--max-tokens", "40", "--stats", "--speculate", "auto"]
    done = command("chat", sample, *options, stdin=lines)
    first, second = done.err.splitlines()
    assert "cached" not in first
    assert int(re.findall(r"(\d+) cached", second)[0]) >= 32
    assert command("chat", sample, *options[:4], "--cache", "0", stdin=lines).out == done.out


def test_help_names_every_command_and_two_slashes_are_one(bundle: Path) -> None:
    done = command("chat", bundle, stdin="/help\n//five five\n/history\n")
    assert all(
        f"  /{name} " in done.err for name in ("help", "system", "reset", "undo", "retry", "save", "load", "set")
    )
    assert "user: /five five" in done.err


def test_a_bundle_without_messages(tmp_path: Path) -> None:
    done = command("chat", doubler(tmp_path / "doubler.genai"), stdin="hello\n")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "no chat template" in done.err


# -- at a terminal ----------------------------------------------------------------------------------------------------


class Window:
    """The other end of a program's terminal."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.process, self._master, self.seen = process, master, ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str, seconds: float = 60, *, key: str = "") -> str:
        """What was shown until the pattern came, without escape codes; the next call looks behind it.

        `key` is typed every few seconds: an editor that only begins to listen may not hear the first one.
        """
        import select

        end, again = time.monotonic() + seconds, 0.0
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"{pattern!r} did not come: {self.seen!r}"
            if key and time.monotonic() > again:
                self.type(key)
                again = time.monotonic() + 3
            ready, _, _ = select.select([self._master], [], [], 1)
            if ready:
                try:
                    piece = os.read(self._master, 4096)
                except OSError:  # the program has ended
                    piece = b""
                assert piece, f"{pattern!r} did not come before the end: {self.seen!r}"
                self.seen = self.seen + ESCAPE.sub("", piece.decode(errors="replace"))
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown


@contextmanager
def window(bundle: Path, *arguments: str, code: str = "pass") -> Iterator[Window]:
    """`genai-bundle chat` with a terminal of its own. `code` runs before it."""
    pty = pytest.importorskip("pty")  # not on Windows
    master, slave = pty.openpty()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1",
    }  # fmt: skip
    start = f"import sys; {code}; from genai_bundle.cli import main; main()"
    line = [sys.executable, "-c", start, "chat", str(bundle), *arguments]

    def own_terminal() -> None:
        import fcntl
        import termios

        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))

    process = subprocess.Popen(line, stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=own_terminal)
    os.close(slave)
    try:
        yield Window(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


PROMPT, ANSWERED = "> ?", "tokens/s"


@pytest.mark.parametrize("library", [True, False])
def test_a_terminal_has_editing_figures_and_an_end(bundle: Path, library: bool) -> None:
    if library:
        pytest.importorskip("prompt_toolkit")
    with window(bundle, code="pass" if library else "sys.modules['prompt_toolkit'] = None") as shown:
        greeting = shown.wait_for(PROMPT)
        assert "/help" in greeting
        assert ("pip install" in greeting) is not library
        shown.type("siz\x7fx\r")  # a key too many and backspace
        assert "seven" in shown.wait_for(ANSWERED)
        if library:
            shown.type("one\x1b\rfive\r")  # Alt-Enter
            assert "six seven" in shown.wait_for(ANSWERED)
        shown.type("/dance\r")
        shown.wait_for("error: there is no command /dance")
        shown.wait_for(PROMPT)
        shown.wait_for("Ctrl-D leaves", key="\x03")
        shown.wait_for(PROMPT)
        shown.type("\x04")
        assert shown.process.wait(timeout=60) == 0


def test_an_interrupt_stops_the_answer_and_not_the_chat(tmp_path: Path) -> None:
    state = {"kv": {"graph": "decoder", "ports": {"p": "q"}, "axis": 2, "tokens": "ids", "capacity": 1_000_000}}
    text = {"tokenizer": "tokenizer.json", "template": "chat.jinja", "eos": []}
    endless = talker(tmp_path / "endless.genai", state=state, text=text, tests=[])
    with window(endless) as shown:
        shown.wait_for(PROMPT)
        shown.type("one\r")
        shown.wait_for("six seven")
        shown.type("\x03")
        shown.wait_for("interrupted")
        shown.wait_for(ANSWERED)
        shown.type("/exit\r")
        assert shown.process.wait(timeout=60) == 0
