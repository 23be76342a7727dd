# SPDX-License-Identifier: Apache-2.0
"""A `run` of a graph: what goes in by which port, and what its states take out.

The same run is made for every token, between runs that fill the processor's caches with weights: so all that stays the
same is looked up once, and a step touches little memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genai_bundle.errors import BackendError, UsageError
from genai_bundle.manifest import Run

from .backends.base import Array, Tensor
from .program import LoadedGraph
from .state import Group
from .values import Value, literal, to_port

if TYPE_CHECKING:
    from .interpreter import Request


class Cancelled(Exception):  # noqa: N818  not an error: the caller wanted it
    """The request was cancelled, and does not begin another run of a graph."""


class GraphRun:
    """One `run` step of one request, as often as it is asked for."""

    def __init__(self, request: Request, step: Run) -> None:
        self.step, self._request = step, request
        self._loaded = loaded = request.program.graphs[step.target]
        self._graph, ports = request.graph(step.target), loaded.ports.inputs
        # A variant may do without some of the ports.
        named = {port: name.partition(".") for port, name in step.inputs.items() if port in ports}
        self._values = [(ports[port], name) for port, (name, dot, _) in named.items() if not dot]
        self._fields = [(ports[port], request.states[name], field) for port, (name, dot, field) in named.items() if dot]
        self._given = {port: value for port, value in step.literals.items() if port in ports}
        self._literals = {port: literal(value, ports[port]) for port, value in self._given.items()}
        self._groups = [request.states[name] for name in loaded.states]
        self._parts: Sequence[Mapping[str, Tensor]] | None = None

    def set_literal(self, port: str, value: Any) -> None:
        """Feed `port` with this value from now on, in place of what the step's `with` says."""
        if self._given.get(port) != value:
            self._given[port], self._literals[port] = value, literal(value, self._loaded.ports.inputs[port])
            self._parts = None  # the shapes of outputs may follow from it

    def __call__(self, scope: Mapping[str, Value]) -> Mapping[str, Value]:
        """Run the graph and update its states. Returns what the step takes of its outputs, by port."""
        request, step = self._request, self.step
        request.check()
        feeds: dict[str, Tensor] = dict(self._literals)
        for port, name in self._values:
            feeds[port.name] = to_port(request.value(name, scope, step.where), port, step.where)
        added = [self._admit(group, feeds) for group in self._groups]
        parts = [group.feeds(n) for group, n in zip(self._groups, added, strict=True)]
        if self._parts is None or any(one is not before for one, before in zip(parts, self._parts, strict=True)):
            self._arrange(parts)
        feeds.update(self._held)
        for port, group, field in self._fields:
            n = added[self._groups.index(group)] if group in self._groups else 0
            feeds[port.name] = group.field(field, n, port)
        began = time.perf_counter()
        try:
            outputs = self._graph.run(feeds, self._want, keep=self._keep, into=self._into)
        except Exception as error:  # an engine may raise anything
            raise failed(self._loaded, step, error) from error
        request.record.graph(self._loaded.name, began)
        for group, n in zip(self._groups, added, strict=True):
            group.commit(outputs, n)
        # A buffer is written again by the next run: a value is a copy of it.
        into = self._into
        return {name: into[name].copy() if name in into else self._graph.array(outputs[name]) for name in step.outputs}

    def _arrange(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Put together what the states feed, and the outputs that they want: the same until one feeds another mapping.

        An engine may know these by identity, so they are made anew and not changed.
        """
        self._parts, self._held, self._into = parts, dict[str, Tensor](), dict[str, Array]()
        for group, part in zip(self._groups, parts, strict=True):
            self._held.update(part)
            self._into.update(group.into())
        self._keep = [port for group in self._groups for port in group.keep]
        self._want = [*self.step.outputs, *(port for port in self._keep if port not in self.step.outputs)]

    def _admit(self, group: Group, feeds: Mapping[str, Any]) -> int:
        """The number of tokens that this run adds to the state, once it is known that the state takes them."""
        n: int = feeds[group.spec.tokens].shape[1] if group.spec.tokens else 1
        if group.capacity is not None and group.length + n > group.capacity:
            message = f"{group.length + n} positions, and state {group.name!r} holds at most {group.capacity}"
            raise UsageError(message, where=self.step.where, hint="Shorten the prompt")
        if group.most is not None and n > group.most:
            message = f"state {group.name!r} takes {group.most} tokens at once, not {n}"
            raise UsageError(message, where=self.step.where)
        return n


def failed(loaded: LoadedGraph, step: Run, error: Exception, how: str = "") -> BackendError:
    """What is said of a graph whose run at `step` raised; `how` it was run, where that is worth saying."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BackendError(f"graph {loaded.name!r} ({loaded.place.file}) failed{how}: {reason}", where=step.where)
