# SPDX-License-Identifier: Apache-2.0
"""What the commands print with: tables and trees on stdout, notes and progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE_S = 2.0
"""Work shorter than this shows no progress."""

PLAIN_WIDTH = 120
"""Columns where stdout is no terminal, so that a redirected summary does not depend on who redirected it."""

Progress = Callable[[int, int], None]
"""Called as work goes on, with what is done and what there is in all (bytes, mostly)."""


def stdout() -> Console:
    """A rich console on stdout, which must not be interpreted or coloured but where a style says so."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False, markup=False, emoji=False)


def note(text: str) -> None:
    """One line for the person at the terminal; never part of a command's result."""
    typer.echo(text, err=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON object on stdout; `indent=None` puts it on one line, which suits long arrays."""
    import json

    typer.echo(json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False))


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar for work that takes longer than PATIENCE_S, where stderr is a terminal; else nothing is shown."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    bars = Bars(*Bars.get_default_columns(), console=Console(stderr=True), transient=True)
    task = bars.add_task(title, total=None)
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        bars.update(task, completed=done, total=total)
        if not bars.live.is_started and time.monotonic() - began > PATIENCE_S:
            bars.start()

    try:
        yield show
    finally:
        bars.stop()


@contextmanager
def phases(title: str) -> Iterator[Callable[[str], None]]:
    """For work in steps of unknown length: a spinner with the step's name, under the same conditions as `progress`."""
    if not sys.stderr.isatty():
        yield lambda _step: None
        return
    import threading

    from rich.console import Console

    status = Console(stderr=True).status(title)
    later = threading.Timer(PATIENCE_S, status.start)  # one step may take minutes, and says nothing meanwhile
    later.daemon = True
    later.start()
    try:
        yield lambda step: status.update(f"{title}: {step}")
    finally:
        later.cancel()
        later.join()
        status.stop()


@contextmanager
def interrupts(stop: Callable[[], None]) -> Iterator[None]:
    """While this is open the first Ctrl-C calls `stop`; a second one is an interrupt as ever."""
    import signal
    import threading

    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()  # which alone hears of signals
    if not main or before is not signal.default_int_handler:  # a job in the background is not to be interrupted
        yield
        return

    def first(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def human_size(count: int) -> str:
    """`count` bytes as people say it: 831 B, 1.2 MB (powers of 1000, as file managers and drives count)."""
    if count < 1000:
        return f"{count} B"
    power = min((len(str(count)) - 1) // 3, 4)
    size, unit = count / 1000**power, ("kB", "MB", "GB", "TB")[power - 1]
    return f"{size:.1f} {unit}" if size < 100 else f"{size:.0f} {unit}"


def type_text(type_: str, dims: tuple[int | str, ...] | None, rate: int | None = None) -> str:
    """A declared type in the compact form that recipes use: `f32[1,T*]`, `audio[N]@16000`, `text*`."""
    if type_ == "text" and dims:
        return "text*"
    shape = f"[{','.join(map(str, dims))}]" if dims else ""
    return f"{type_}{shape}" + (f"@{rate}" if rate else "")
