# SPDX-License-Identifier: Apache-2.0
"""The steps of a `generate` from ids to logits, and the states of the graphs that they run."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_bundle.flow import runs
from genai_bundle.manifest import Emit, Generate, Run, Step

from .backends.base import Array
from .state import Group
from .values import Emission, Value

if TYPE_CHECKING:
    from .interpreter import Request, Scope


class Body:
    """Steps that turn ids i64[1, n], under the name `ids`, into the value `logits`, for one request."""

    def __init__(self, request: Request, do: Sequence[Step], logits: str, scope: Scope, ids: str) -> None:
        self._request, self._do, self._logits, self._scope, self._ids = request, do, logits, scope, ids
        names = _graphs_of(do)
        loaded = request.program.graphs.values()
        self.states: list[Group] = [request.states[name] for one in loaded if one.name in names for name in one.states]
        self._most = min((group.most for group in self.states if group.most), default=None)
        self._count, self.all_positions = self._positions()
        self._only = self._only_run()

    def twin(self, request: Request, scope: Scope) -> Body:
        """The same steps for another request of the same program."""
        return Body(request, self._do, self._logits, scope, self._ids)

    def take(self, do: Sequence[Step]) -> None:
        """Go on with these steps: the same ones, which name more or fewer of what they compute."""
        self._do = do
        self._only = self._only_run()
        self._count, self.all_positions = self._positions()

    @property
    def only_ids(self) -> bool:
        """Whether what the steps compute follows from the ids alone: two requests with equal ids have equal states."""
        made = {self._ids}
        for step in self._do:
            if not isinstance(step, Run) or step.is_op:
                return False
            if any(name not in made and "." not in name for name in step.inputs.values()):
                return False
            made.update(step.outputs.values())
        return True

    @property
    def checks(self) -> bool:
        """Whether a run over several ids tells the logits behind each, and the states can then forget some of them."""
        return (self.all_positions or self._count is not None) and all(group.goes_back for group in self.states)

    def pieces(self, ids: Sequence[int]) -> list[list[int]]:
        """The ids in as many pieces as the states need; nearly always one."""
        most = self._most or len(ids)
        return [list(ids[i : i + most]) for i in range(0, len(ids), most)]

    def run(
        self, ids: Sequence[int], carried: Mapping[str, Value], positions: int = 1
    ) -> Generator[Emission, None, tuple[Array, Mapping[str, Value]]]:
        """Run the steps over `ids`. Returns f[positions, V], the logits behind the last ids, and the steps' names."""
        if self._count is not None:
            step, port = self._count
            self._request.graph_run(step).set_literal(port, positions)
        mine = {**carried, self._ids: np.array([ids], np.int64)}
        inner: Mapping[str, Value]
        if self._only is not None:
            outputs = self._request.graph_run(self._only)(mine)
            inner = {name: outputs[port] for port, name in self._only.outputs.items()}
        else:
            inner = scope = self._scope.new_child(mine)
            yield from self._request.steps(self._do, scope)
        logits: Array = np.asarray(inner[self._logits])
        return logits.reshape(-1, logits.shape[-1])[-positions:], inner

    def compute(self, ids: Sequence[int]) -> Array:
        """f[V], the logits behind `ids`, of steps that emit nothing and carry ids only; in as many runs as it takes."""
        return self.follow(ids, {})[0]

    def follow(self, ids: Sequence[int], along: Mapping[str, Array]) -> tuple[Array, Mapping[str, Value]]:
        """The same of steps that read values beside the ids, `along` [1, n, ..]; and the names of the last run."""
        done = 0
        for piece in self.pieces(ids):
            run = self.run(piece, {name: array[:, done : done + len(piece)] for name, array in along.items()})
            try:
                while True:
                    next(run)
            except StopIteration as end:
                logits, inner = end.value
            done += len(piece)
        return logits[-1], inner

    def rewind(self, count: int) -> None:
        """Let every state forget its last `count` positions. UsageError where one cannot; nothing has changed then."""
        groups = [group for group in self.states if group.length]
        for group in sorted(groups, key=lambda group: group.can_rewind(group.length - count)):
            group.rewind(group.length - count)

    def _only_run(self) -> Run | None:
        """The run of a graph on the ids that is all there is to do, as it nearly always is: a step is short then."""
        step = self._do[0] if len(self._do) == 1 else None
        return step if isinstance(step, Run) and self.only_ids else None

    def _positions(self) -> tuple[tuple[Run, str] | None, bool]:
        """The (run, port) that says for how many positions there are logits; or whether for all.

        The graph tells: the dim of the logits' positions is called as the port is, or as the ids' dim.
        """
        for step in self._do:
            if not isinstance(step, Run) or self._logits not in step.outputs.values() or step.is_op:
                continue
            loaded = self._request.program.graphs.get(step.target)
            if loaded is None:  # another stack runs it
                break
            ports = loaded.ports
            output = next(port for port, name in step.outputs.items() if name == self._logits)
            dim = ports.outputs[output].dims[-2] if len(ports.outputs[output].dims) > 1 else None
            if isinstance(dim, str) and step.literals.get(dim) == 1 and dim in ports.inputs:
                return (step, dim), False
            named = [port for port, name in step.inputs.items() if name == self._ids]
            fed = [ports.inputs[port] for port in named if port in ports.inputs]
            return None, any(isinstance(dim, str) and len(port.dims) > 1 and port.dims[1] == dim for port in fed)
        return None, False


def bare(step: Generate) -> tuple[Step, ...]:
    """The steps of its body, without the names that only its draft reads: nothing is fetched that nobody asks for."""
    if step.draft is None or not step.draft.carry:
        return step.do
    read = {step.logits, *(following for _, following in step.carry.values()), *_names_read(step.do)}
    spare = {given for given, _ in step.draft.carry.values()} - read
    return tuple(
        replace(one, outputs={port: name for port, name in one.outputs.items() if name not in spare})
        if isinstance(one, Run)
        else one
        for one in step.do
    )


def _names_read(steps: Sequence[Any]) -> set[str]:
    """At least the names that steps read, at any depth."""
    found: set[str] = set()
    for step in steps:
        if isinstance(step, Run):
            found |= {*step.inputs.values()}
        elif isinstance(step, Emit):
            found |= {*step.values.values()}
        else:  # a loop or a branch: rare here, and its names are not sorted out
            found |= {name for run in runs([step]) for name in run.outputs.values()}
    return found


def _graphs_of(steps: Sequence[Any]) -> set[str]:
    """The graphs that steps run, at any depth."""
    found: set[str] = set()
    for step in steps:
        if isinstance(step, Run):
            found.add(step.target)
        for part in ("do", "then", "orelse"):
            found |= _graphs_of(getattr(step, part, ()))
    return found
