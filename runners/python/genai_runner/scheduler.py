# SPDX-License-Identifier: Apache-2.0
"""Many requests at once over one pipeline, by continuous batching.

with Scheduler(pipe) as scheduler:
    streams = [scheduler.submit(prompt, max_tokens=64) for prompt in prompts]
    for stream in streams:
        print(stream.result.text)

Requests join and leave between steps. In each round every request that generates gets one token, by one run of the
model for all of them where its graphs allow (rows.py), and pieces of prompts that are not computed yet are computed.
A request's tokens are the same alone and in any company.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from genai_bundle.errors import GenaiError, UsageError

from .processors import begin
from .results import Stream
from .rows import Rows, joint
from .turns import Task
from .values import Emission, Value

if TYPE_CHECKING:
    from .pipeline import Pipeline

PATIENCE = 8
"""A request that so many others were let past counts as one priority higher."""


class QueueFullError(GenaiError):
    """As many requests wait as may: try again later, or wait in `submit`."""


class Scheduler:
    """Runs requests of one pipeline in a thread of its own.

    rows: requests that run at the same time, each with states of its own. waiting: requests that may wait for that.
    chunk: tokens of prompts that are computed in a round, while others generate.
    """

    def __init__(self, pipe: Pipeline, *, rows: int = 16, waiting: int = 1024, chunk: int = 256) -> None:
        for name, value in (("rows", rows), ("waiting", waiting), ("chunk", chunk)):
            if value < 1:
                raise UsageError(f"{name} is {value}, but it takes 1 or more")
        self._pipe, self._limit, self._most_waiting, self._chunk = pipe, rows, waiting, chunk
        self._waiting: list[Task] = []
        self._active: list[Task] = []
        self._rows: dict[tuple[str, str | None], tuple[Rows, list[Task]]] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="genai-scheduler", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: Value = None,
        /,
        *,
        priority: int = 0,
        wait: bool = True,
        output: str | None = None,
        **inputs_and_options: Value,
    ) -> Stream:
        """Queue a request, and return its stream: iterate over it, ask for its `result`, or `cancel` it.

        priority: higher ones begin first. wait: where the queue is full, wait; otherwise raise QueueFullError.
        Raises UsageError at once for arguments that do not fit.
        """
        request, scope = self._pipe._request(prompt, inputs_and_options, None)
        emissions: queue.SimpleQueue[Emission | BaseException | None] = queue.SimpleQueue()
        task = Task(request, scope, self._chunk, emissions.put, priority, next(self._numbers))
        shown = self._pipe._streamed(output)
        stream = Stream(request, _until_end(emissions), shown, self._pipe.text_output, elsewhere=True)
        with self._changed:
            while len(self._waiting) >= self._most_waiting and not self._closing:
                if not wait:
                    message = f"{len(self._waiting)} requests wait already"
                    raise QueueFullError(message, hint="Submit again later, or with wait=True")
                self._changed.wait()
            if self._closing:
                raise UsageError("the scheduler is closed")
            self._waiting.append(task)
            self._changed.notify_all()
        return stream

    @property
    def active(self) -> int:
        """Requests that run."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Requests that wait for others to end."""
        return len(self._waiting)

    def close(self) -> None:
        """Cancel what runs and waits, and end the thread."""
        with self._changed:
            self._closing = True
            for task in [*self._active, *self._waiting]:
                task.request.cancelled.set()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._active or self._waiting or self._closing):
                    self._changed.wait()
                if self._closing and not self._active and not self._waiting:
                    return
                self._admit()
            try:
                self._round()
            except Exception as error:  # nothing is known of anyone's states then
                for task in list(self._active):
                    self._end(task, error)
                self._rows.clear()

    def _round(self) -> None:
        """A token for every request that is at it, and pieces of prompts."""
        for task in [task for task in self._active if task.request.cancelled.is_set()]:
            self._end(task, None)
        self._prefill()
        self._decode()

    def _admit(self) -> None:
        """Let requests begin, the most important ones first; those that were passed over often count as more so."""
        for task in [task for task in self._waiting if task.request.cancelled.is_set()]:
            self._waiting.remove(task)
            self._end(task, None)
        while self._waiting and len(self._active) < self._limit:
            first = max(self._waiting, key=lambda task: (task.priority + task.passed // PATIENCE, -task.number))
            for task in self._waiting:
                task.passed += task.number < first.number
            self._waiting.remove(first)
            self._active.append(first)
            first.request.record.admit()
        self._changed.notify_all()

    def _prefill(self) -> None:
        """Pieces of prompts, as many tokens as a round may take; they take turns, within each priority."""
        left = self._chunk
        while left > 0 and (unready := [task for task in self._active if not task.wants_token]):
            task = max(unready, key=lambda task: (task.priority, -task.turns, -task.number))
            self._go_on(task)
            left -= task.cost

    def _go_on(self, task: Task) -> None:
        """Let a task work until it wants something again."""
        task.turns += 1
        try:
            going = task.go_on()
        except Exception as error:
            self._end(task, None if task.request.cancelled.is_set() else error)
            return
        if not going:
            self._end(task, None)

    def _decode(self) -> None:
        """One token for every request that is at it."""
        kinds: defaultdict[tuple[str, str | None], list[Task]] = defaultdict(list)
        for task in self._active:
            if task.wants_token:
                kinds[task.kind].append(task)
        for kind, tasks in kinds.items():
            able = [task for task in tasks if task.decoder.has_one_pending]
            if kind in self._rows or (len(able) > 1 and joint(self._pipe._program, able[0].step, kind[1]) is None):
                self._together(kind, able)
            for task in tasks:
                if task in self._active:
                    self._go_on(task)

    def _together(self, kind: tuple[str, str | None], tasks: list[Task]) -> None:
        """Give the tasks, which lack the logits behind one token, theirs by one run."""
        if kind not in self._rows:
            self._rows[kind] = Rows(self._pipe._program, tasks[0].step, kind[1]), []
        rows, members = self._rows[kind]
        try:
            for task in tasks:
                if task not in members:
                    members.append(task)  # first: its own states are empty from here on, so it ends if this fails
                    rows.add(*task.decoder.hand_over())
            for task in members:
                begin(task.decoder.processors, task.decoder.tokens)
            logits = rows.run([task.decoder.tokens[-1] for task in members])
        except Exception as error:
            self._rows.pop(kind)
            for task in members:
                self._end(task, error)
            return
        for task, row in zip(members, logits, strict=True):
            task.decoder.put(row)

    def _end(self, task: Task, error: Exception | None) -> None:
        """Let go of all that a task holds, and tell its stream."""
        if task in self._active:
            self._active.remove(task)
        try:
            for kind, (_, members) in list(self._rows.items()):
                if task in members:
                    keep = error is None and not task.request.cancelled.is_set()
                    self._take_out(task, kind, keep=keep and self._pipe.prefix_cache is not None)
        finally:  # whatever fails here, its stream must not wait for ever
            task.end(error)
            with self._changed:
                self._changed.notify_all()

    def _take_out(self, task: Task, kind: tuple[str, str | None], *, keep: bool) -> None:
        """Free a task's row, and let the prefix cache keep what it holds."""
        rows, members = self._rows[kind]
        row = members.index(task)
        if keep:
            task.decoder.take_back(rows.save(row))
            task.decoder.remember()
        rows.remove(row)
        members[row] = members[-1]
        members.pop()
        if not members:
            del self._rows[kind]


def _until_end(emissions: queue.SimpleQueue[Emission | BaseException | None]) -> Iterator[Emission]:
    while (one := emissions.get()) is not None:
        if isinstance(one, BaseException):
            raise one
        yield one
