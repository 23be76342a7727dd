# SPDX-License-Identifier: Apache-2.0
"""What happens inside, told as it happens: `load(..., trace=callable)` calls it with each `Event`.

`ChromeTrace` is such a callable: it writes the file that chrome://tracing and ui.perfetto.dev show.

with genai_runner.ChromeTrace("trace.json") as trace, genai_runner.load("stories.genai", trace=trace) as pipe:
    pipe("Once upon a time")
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a request did, told when it had ended; `start` is a time of time.perf_counter().

    kind: "began", "graph" (one ran, its name in `details`), "prefill" (the prompt's tokens are computed), "step" (a new
    token is there; since the one before it), "finished" (the whole request, its metrics in `details`).
    request: a number that no other request of this process has.
    """

    kind: str
    request: int
    start: float
    duration: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


Trace = Callable[[Event], None]
"""Called in the thread that runs the request; what it raises ends the request."""


class ChromeTrace:
    """Collects events, and writes them to `path` when it is closed: one row for each request."""

    def __init__(self, path: str | Path) -> None:
        self._path, self._events = Path(path), list[Event]()

    def __call__(self, event: Event) -> None:
        self._events.append(event)

    def close(self) -> None:
        """Write the file."""
        document = {"displayTimeUnit": "ms", "traceEvents": [_chrome(event) for event in self._events]}
        self._path.write_text(json.dumps(document), encoding="utf-8")

    def __enter__(self) -> ChromeTrace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _chrome(event: Event) -> dict[str, Any]:
    """One entry of the Trace Event Format: a complete event, or an instant where nothing lasts. Microseconds."""
    name = {"graph": event.details.get("graph"), "finished": f"request {event.request}"}.get(event.kind) or event.kind
    place = {"ts": 1e6 * event.start, "pid": os.getpid(), "tid": event.request}
    form = {"ph": "i", "s": "t"} if event.kind == "began" else {"ph": "X", "dur": 1e6 * event.duration}
    return {"name": name, "cat": event.kind, **form, **place, "args": dict(event.details)}
