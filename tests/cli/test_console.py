# SPDX-License-Identifier: Apache-2.0
"""What the commands print with: sizes, types, and progress that only a waiting person sees."""

from __future__ import annotations

import io
import sys
import time

import pytest

from genai_bundle.cli import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (150_000, "150 kB"), (1_234_567, "1.2 MB"), (5 * 10**12, "5.0 TB")],
)
def test_sizes(count: int, text: str) -> None:
    assert console.human_size(count) == text


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (("text", None), "text"),
        (("text", ("T*",)), "text*"),
        (("f32", (1, "T*")), "f32[1,T*]"),
        (("audio", ("N",), 16000), "audio[N]@16000"),
    ],
)
def test_types_look_as_in_recipes(declared: tuple[str, tuple[int | str, ...] | None], text: str) -> None:
    assert console.type_text(*declared) == text


def test_long_work_shows_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console, "PATIENCE_S", 0.05)
    with console.progress("hashing") as report:
        report(1, 10)
        time.sleep(0.1)
        report(5, 10)
    with console.phases("building") as tell:
        tell("exporting")
        time.sleep(0.2)
    shown = stream.getvalue()
    assert "hashing" in shown
    assert "building: exporting" in shown


def test_short_work_and_redirected_work_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, patience in ((Terminal(), 60.0), (io.StringIO(), 0.0)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(console, "PATIENCE_S", patience)
        with console.progress("hashing") as report, console.phases("building") as tell:
            report(10, 10)
            tell("exporting")
        assert stream.getvalue() == ""
