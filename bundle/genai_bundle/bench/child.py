# SPDX-License-Identifier: Apache-2.0
"""A side in a process of its own: so its memory is its own, and nothing of another is in it.

What is measured: `peak_rss_bytes`, the most that was resident (VmHWM), pages of mapped files among it, which the
system may take back and processes share; and `peak_private_bytes`, the most of what is in no file (RssAnon, looked at
every few milliseconds from outside). Both count Python and all that was imported. Linux only; elsewhere the first
alone, where the system says it.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from genai_bundle.bench import Side, Times
from genai_bundle.errors import BackendError, GenaiError, UsageError
from genai_runner.metrics import peak_memory

LOOK_S = 0.01


class Child:
    """A process that has loaded a side. Use it as a context manager."""

    def __init__(self, side: Side) -> None:
        self.side = side
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, side), daemon=True)
        self._process.start()
        far.close()
        self._private, self._done = 0, threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        try:
            self.facts: dict[str, Any] = self._answer()
        except BaseException:
            self.close(patience=0)
            raise

    def run(self, ids: Sequence[int], steps: int, batch: int) -> Times:
        found: Times = self._ask("run", (list(ids), steps, batch))
        return found

    def ids(self, context: int) -> list[int]:
        """A prompt of that many tokens; of our side only."""
        found: list[int] = self._ask("ids", (context,))
        return found

    def memory(self) -> dict[str, int | None]:
        """The most memory until now."""
        return {"peak_rss_bytes": self._ask("memory", ()), "peak_private_bytes": self._private or None}

    def close(self, patience: float = 10.0) -> None:
        """End the process: it is given so many seconds to end by itself."""
        self._done.set()
        self._watch.join()
        self._pipe.close()  # the process sees the end of it
        self._process.join(timeout=patience)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(patience=0 if kind else 10)

    def _ask(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        try:
            self._pipe.send((verb, arguments))
        except OSError as error:
            raise self._died() from error
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if kind == "error":
            raise value
        return value

    def _died(self) -> BackendError:
        self._process.join(timeout=10)
        return BackendError(f"the process of {self.side.name} ended with code {self._process.exitcode}")

    def _look(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status")
        while not self._done.wait(LOOK_S):
            self._private = max(self._private, _line(status, "RssAnon:"))


def _line(status: Path, name: str) -> int:
    """Bytes that a line of the file tells; 0 where there is none."""
    try:
        lines = status.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _peak() -> int | None:
    if found := _line(Path("/proc/self/status"), "VmHWM:"):
        return found
    return peak_memory()


def _serve(pipe: Any, side: Side) -> None:
    """The child: load, then answer until the other end is closed. What fails is told and ends nothing else."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of it, and ends us
    engine: Any = None

    def load() -> dict[str, Any]:
        nonlocal engine
        began = time.perf_counter()
        engine = import_module(side.module).open_engine(side)
        return {**engine.facts(), "load_s": time.perf_counter() - began}

    verbs: dict[str, Any] = {"load": load, "memory": _peak}
    message: tuple[str, tuple[Any, ...]] = "load", ()
    while True:
        verb, arguments = message
        try:
            answer = "ok", (verbs.get(verb) or getattr(engine, verb))(*arguments)
        except GenaiError as error:
            answer = "error", type(error)(error.message, where=error.where, hint=error.hint)
        except Exception as error:  # an engine may raise anything
            answer = "error", BackendError(f"{side.name} failed: {type(error).__name__}: {error}")
        try:
            pipe.send(answer)
            message = pipe.recv()
        except (EOFError, OSError):
            return


def check_runs(found: Times, steps: int, side: Side) -> Times:
    """A side that ended early would look fast."""
    if len(found.steps) != steps:
        raise UsageError(f"{side.name} gave {len(found.steps) + 1} tokens instead of {steps + 1}")
    return found
