# SPDX-License-Identifier: Apache-2.0
"""States of several sequences side by side, one row each, as one run of a graph takes them.

`lengths` are those of all rows before the run; a run adds one token to each. The first axis of every array is the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from genai_bundle.manifest import State
from genai_bundle.ports import Port, Ports, match_ports

from .backends.base import Array, Graph, Tensor
from .disciplines import GROWTH
from .state import Saved, form_of
from .values import DTYPES


class RowStates(ABC):
    """One state of the manifest, for all rows."""

    def __init__(self, spec: State, ports: Ports, graph: Graph) -> None:
        self.spec, self._ports, self._graph = spec, ports, graph
        self.pairs = match_ports(spec.ports, ports)

    @property
    def keep(self) -> tuple[str, ...]:
        return tuple(self.pairs.values())

    @abstractmethod
    def add(self, saved: Saved, lengths: Sequence[int]) -> None:
        """A row more, behind those of `lengths`."""

    @abstractmethod
    def remove(self, row: int, lengths: Sequence[int]) -> None:
        """Take a row out; the last one takes its place."""

    @abstractmethod
    def order(self, sources: Sequence[int], lengths: Sequence[int]) -> None:
        """Let each row hold what the row `sources[row]` of those of `lengths` held; there may be more or fewer then."""

    @abstractmethod
    def save(self, row: int, lengths: Sequence[int]) -> Saved:
        """A copy of what one row holds."""

    @abstractmethod
    def feeds(self, lengths: Sequence[int]) -> dict[str, Tensor]:
        """What the past ports are fed."""

    def into(self) -> dict[str, Array]:
        """Outputs that the run writes in place."""
        return {}

    def commit(self, outputs: Mapping[str, Tensor]) -> None:  # noqa: B027  what is written in place is there already
        """Take the run's outputs."""

    def mask(self, lengths: Sequence[int]) -> Array:
        """i64[rows, positions]: what the new tokens may look at."""
        raise NotImplementedError

    def _zeros(self, port: str, rows: int, length: int) -> Array:
        shape, dtype = form_of(self._ports.inputs[port], self.spec.axis, length)
        return np.zeros((rows, *shape[1:]), dtype)

    def _span(self, start: int, end: int) -> tuple[slice, ...]:
        return (slice(None),) * self.spec.axis + (slice(start, end),)


class Rewritten(RowStates):
    """Tensors that every run gives anew, held by the engine: `replace`, and the base of `append`."""

    def __init__(self, spec: State, ports: Ports, graph: Graph) -> None:
        super().__init__(spec, ports, graph)
        self._tensors: dict[str, Tensor] = {}

    def add(self, saved: Saved, lengths: Sequence[int]) -> None:
        rows = [self.save(row, lengths) for row in range(len(lengths))]
        self._put([*rows, saved])

    def remove(self, row: int, lengths: Sequence[int]) -> None:
        rows = [self.save(index, lengths) for index in range(len(lengths))]
        rows[row] = rows[-1]
        self._put(rows[:-1])

    def order(self, sources: Sequence[int], lengths: Sequence[int]) -> None:
        rows = list(sources)
        self._tensors = {port: self._graph.array(tensor)[rows] for port, tensor in self._tensors.items()}

    def save(self, row: int, lengths: Sequence[int]) -> Saved:
        arrays = {port: self._graph.array(tensor)[row : row + 1].copy() for port, tensor in self._tensors.items()}
        return Saved(arrays, lengths[row])

    def feeds(self, lengths: Sequence[int]) -> dict[str, Tensor]:
        return self._tensors

    def commit(self, outputs: Mapping[str, Tensor]) -> None:
        self._tensors = {past: outputs[present] for past, present in self.pairs.items()}

    def _put(self, rows: Sequence[Saved]) -> None:
        if not rows:
            self._tensors = {}
            return
        self._tensors = {port: np.concatenate([row.arrays[port] for row in rows]) for port in self.pairs}


class Appended(Rewritten):
    """Caches that grow with every run. Shorter rows begin with positions that the mask hides."""

    _total = 0  # positions of the tensors, hidden ones too

    def _put(self, rows: Sequence[Saved]) -> None:
        self._total = longest = max((row.length for row in rows), default=0)
        tensors = {}
        for port in self.pairs if rows else ():
            array = self._zeros(port, len(rows), longest)
            for index, row in enumerate(rows):
                array[index : index + 1][self._span(longest - row.length, longest)] = row.arrays[port]
            tensors[port] = array
        self._tensors = tensors

    def save(self, row: int, lengths: Sequence[int]) -> Saved:
        arrays = {}
        for port, tensor in self._tensors.items():
            array = self._graph.array(tensor)[row : row + 1]
            end = array.shape[self.spec.axis]
            arrays[port] = array[self._span(end - lengths[row], end)].copy()
        return Saved(arrays, lengths[row])

    def mask(self, lengths: Sequence[int]) -> Array:
        places = np.arange(self._total + 1)
        return (places[None] >= self._total - np.asarray(lengths)[:, None]).astype(np.int64)

    def commit(self, outputs: Mapping[str, Tensor]) -> None:
        super().commit(outputs)
        self._total += 1


class Buffered(RowStates):
    """Buffers that runs write in place: `shared`, which grow up to the capacity, and `scatter`, which have it."""

    def __init__(self, spec: State, ports: Ports, graph: Graph) -> None:
        super().__init__(spec, ports, graph)
        self._rows, self._size = 0, spec.capacity or 0 if spec.update == "scatter" else 0
        self._arrays: dict[str, Array] = {port: self._zeros(port, 0, self._size) for port in self.pairs}
        self._views: dict[str, Array] = {}

    def add(self, saved: Saved, lengths: Sequence[int]) -> None:
        rows = len(lengths) + 1
        self._reserve(rows, saved.length, lengths)
        for port, array in saved.arrays.items():
            into = self._arrays[port][rows - 1 : rows]
            into[self._span(0, array.shape[self.spec.axis])] = array
        self._show(rows)

    def remove(self, row: int, lengths: Sequence[int]) -> None:
        last = len(lengths) - 1
        if row != last:
            span = self._span(0, lengths[last])
            for array in self._arrays.values():
                array[row : row + 1][span] = array[last : last + 1][span]
        self._show(last)

    def order(self, sources: Sequence[int], lengths: Sequence[int]) -> None:
        moved = [row for row, source in enumerate(sources) if row != source]
        self._reserve(len(sources), max(lengths), lengths)
        if moved:
            for array in self._arrays.values():
                held = array[self._span(0, max(lengths))]
                held[moved] = held[[sources[row] for row in moved]]  # copied before any is written over
        self._show(len(sources))

    def save(self, row: int, lengths: Sequence[int]) -> Saved:
        span = self._span(0, lengths[row])
        return Saved({port: array[row : row + 1][span].copy() for port, array in self._arrays.items()}, lengths[row])

    def feeds(self, lengths: Sequence[int]) -> dict[str, Tensor]:
        self._reserve(len(lengths), max(lengths) + 1, lengths)
        return dict(self._views)

    def into(self) -> dict[str, Array]:
        return {present: self._views[past] for past, present in self.pairs.items()}

    def mask(self, lengths: Sequence[int]) -> Array:
        size = self._size if self.spec.update == "scatter" else max(lengths) + 1
        return (np.arange(size)[None] <= np.asarray(lengths)[:, None]).astype(np.int64)

    def _show(self, rows: int) -> None:
        """Make the views of the rows in use; the engine knows them by identity."""
        self._views = {port: array[:rows] for port, array in self._arrays.items()}

    def _reserve(self, rows: int, length: int, lengths: Sequence[int]) -> None:
        """Let there be room for so many rows and positions."""
        most = self.spec.capacity or length
        size = self._size if length <= self._size else min(max(length, GROWTH, 2 * self._size), max(most, length))
        held = self._rows if rows <= self._rows else max(rows, 2 * self._rows)
        if (size, held) == (self._size, self._rows):
            return
        for port, old in self._arrays.items():
            new = self._zeros(port, held, size)
            for row, count in enumerate(lengths):
                span = self._span(0, count)
                new[row : row + 1][span] = old[row : row + 1][span]
            self._arrays[port] = new
        self._rows, self._size = held, size
        self._show(len(lengths))


KINDS: Mapping[str, type[RowStates]] = {
    "append": Appended,
    "shared": Buffered,
    "scatter": Buffered,
    "replace": Rewritten,
}
"""How each way of updating is held for several rows; what is not here runs one by one."""


def field(states: RowStates, name: str, lengths: Sequence[int], port: Port) -> Array:
    """`state.field` of a run that adds a token to each row, as `port` takes it."""
    counts, dtype = np.asarray(lengths), DTYPES[port.dtype]
    if name == "mask":
        return states.mask(lengths).astype(dtype)
    if name == "positions":
        return counts[:, None].astype(dtype)
    values = {"len": counts, "total": counts + 1, "last": counts}[name]
    return values.astype(dtype) if port.dims else np.asarray(values.max(), dtype)


def why_not(states: State, ports: Ports, fields: Mapping[str, str]) -> str | None:
    """Why rows of different length cannot share a run of a graph, as far as its ports tell; `fields`: port -> field."""
    if states.update not in KINDS:
        return f"a state of the kind {states.update!r}"
    for past in match_ports(states.ports, ports):
        if not isinstance(ports.inputs[past].dims[0], str) or states.axis == 0:
            return f"{past!r} takes one row only"
    for port, name in fields.items():
        dims = ports.inputs[port].dims
        rowwise = bool(dims) and isinstance(dims[0], str)
        if name in ("mask", "positions"):
            fine = rowwise and len(dims) == 2
        elif states.update == "append":
            fine = False  # a length says nothing of where a row begins
        else:
            fine = (rowwise and len(dims) == 1) or (name == "total" and not dims)
        if not fine:
            return f"{port!r} takes one length for all rows"
    if states.update == "append" and "mask" not in fields.values():
        return "no mask hides the beginning of shorter rows"
    return None
