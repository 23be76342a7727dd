# SPDX-License-Identifier: Apache-2.0
"""Several generations, one run of the model: each is a row of the same graph, with a length of its own.

A bundle knows one sequence only, and its graphs are not bound to take rows of different length. Whether they do is seen
in two steps: the ports must allow it (`joint`), and two short sequences of different length must get the logits that
each gets alone (`proved`), which is tried once for each program.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from genai_bundle.manifest import Generate, Run

from .arguments import Arguments
from .backends.base import Array
from .body import Body, bare
from .expand import ids_name
from .graph_run import failed
from .interpreter import Request, Scope
from .metrics import Recorder
from .program import LoadedGraph, Program
from .row_states import KINDS, RowStates, field, why_not
from .state import Saved
from .values import DTYPES, literal

TOLERANCE = 0.02
"""Of the spread of the logits: rows that are mixed up differ by far more, reduced arithmetic by less."""


class Rows:
    """Sequences that run together. `lengths`: the tokens that each holds. record: told of each run of a graph."""

    def __init__(self, program: Program, step: Generate, adapter: str | None, record: Recorder | None = None) -> None:
        self._program, self._step, self._ids, self._record = program, step, ids_name(step), record
        self._runs = [one for one in bare(step) if isinstance(one, Run)]
        names = {one.target for one in self._runs}
        apply = program.adapters.apply
        self._graphs = {name: apply(adapter, name, program.graphs[name].graph) for name in names}
        self._states: dict[str, RowStates] = {}
        for name in names:
            loaded = program.graphs[name]
            for state, spec in loaded.states.items():
                self._states[state] = KINDS[spec.update](spec, loaded.ports, self._graphs[name])
        self.lengths: list[int] = []

    def add(self, saved: dict[str, Saved], length: int) -> None:
        """A sequence more, in the last row, with what its own states held."""
        for name, states in self._states.items():
            states.add(saved[name], self.lengths)
        self.lengths.append(length)

    def remove(self, row: int) -> None:
        """Take a sequence out; the last one takes its row."""
        for states in self._states.values():
            states.remove(row, self.lengths)
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()

    def order(self, sources: Sequence[int]) -> None:
        """Let each row go on from what the row `sources[row]` holds now; there may be more or fewer rows then."""
        if list(sources) == list(range(len(self.lengths))):
            return
        for states in self._states.values():
            states.order(sources, self.lengths)
        self.lengths = [self.lengths[source] for source in sources]

    def save(self, row: int) -> dict[str, Saved]:
        """What the states of one sequence hold."""
        return {name: states.save(row, self.lengths) for name, states in self._states.items()}

    def run(self, tokens: Sequence[int]) -> Array:
        """Add one token to each row. Returns f[rows, V], the logits behind them."""
        values: dict[str, Any] = {self._ids: np.asarray(tokens, np.int64)[:, None]}
        for step in self._runs:
            self._run(step, self._program.graphs[step.target], values)
        self.lengths = [length + 1 for length in self.lengths]
        logits: Array = values[self._step.logits]
        return logits.reshape(len(tokens), -1, logits.shape[-1])[:, -1]

    def _run(self, step: Run, loaded: LoadedGraph, values: dict[str, Any]) -> None:
        ports, feeds, into, keep = loaded.ports.inputs, dict[str, Any](), dict[str, Array](), list[str]()
        mine = [self._states[name] for name in loaded.states]
        for states in mine:
            feeds.update(states.feeds(self.lengths))
            into.update(states.into())
            keep += states.keep
        for port, name in step.inputs.items():
            if port in ports:
                state, dot, part = name.partition(".")
                if dot:
                    feeds[port] = field(self._states[state], part, self.lengths, ports[port])
                else:
                    feeds[port] = values[name].astype(DTYPES[ports[port].dtype], copy=False)
        feeds.update({port: literal(value, ports[port]) for port, value in step.literals.items() if port in ports})
        want = [*step.outputs, *(port for port in keep if port not in step.outputs)]
        graph, began = self._graphs[loaded.name], time.perf_counter()
        try:
            outputs = graph.run(feeds, want, keep=keep, into=into)
        except Exception as error:  # an engine may raise anything
            raise failed(loaded, step, error, f" for {len(self.lengths)} rows") from error
        if self._record is not None:
            self._record.graph(loaded.name, began)
        for states in mine:
            states.commit(outputs)
        for port, name in step.outputs.items():
            values[name] = into[port].copy() if port in into else graph.array(outputs[port])


def joint(program: Program, step: Generate, adapter: str | None = None) -> str | None:
    """Why sequences of different length cannot share a run of this step's body; None where they can."""
    if step.where not in program.joint:
        program.joint[step.where] = _by_ports(program, step) or proved(program, step, adapter)
    return program.joint[step.where]


def _by_ports(program: Program, step: Generate) -> str | None:
    request = Request(program, Arguments())
    if len(step.carry) > 1:
        return "the loop carries more than ids"
    if not Body(request, step.do, step.logits, Scope(), ids_name(step)).only_ids:
        return "the body does not work on ids alone"
    updates = set()
    for one in step.do:
        assert isinstance(one, Run)
        loaded = program.graphs[one.target]
        for port, name in one.inputs.items():
            dims = loaded.ports.inputs[port].dims if port in loaded.ports.inputs else ("batch",)
            if "." not in name and not (dims and isinstance(dims[0], str)):
                return f"{port!r} takes one row only"
        for state, spec in loaded.states.items():
            named = {port: name.partition(".") for port, name in one.inputs.items() if port in loaded.ports.inputs}
            fields = {port: part for port, (owner, dot, part) in named.items() if dot and owner == state}
            updates.add(spec.update)
            if reason := why_not(spec, loaded.ports, fields):
                return reason
    grown = updates - {"replace"}
    return "states of several kinds" if len(grown) > 1 else None if updates else "no state to keep rows in"


def proved(program: Program, step: Generate, adapter: str | None) -> str | None:
    """Why not, by trial: two sequences of different length, together and each alone."""
    program = replace(program, trace=None)  # it is no part of a request
    rows, alone, last = Rows(program, step, adapter), [], []
    try:
        for ids in ([1, 2, 3, 1, 2, 1, 3, 3, 2, 1, 1], [3, 1, 2]):
            request = Request(program, Arguments(adapter=adapter))
            body = Body(request, step.do, step.logits, Scope(), ids_name(step))
            body.compute(ids[:-1])
            rows.add({group.name: group.save() for group in body.states}, len(ids) - 1)
            alone.append(body.compute(ids[-1:]))
            last.append(ids[-1])
        together = rows.run(last)
    except Exception as error:  # whatever it is: they will run one by one
        return f"a run over two rows failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    expected = np.stack(alone).astype(np.float64)
    spread = max(float(np.ptp(expected)), 1e-6)
    difference = float(np.abs(together - expected).max())
    return None if difference <= TOLERANCE * spread else f"two rows differ by {difference:.3g} from each alone"
