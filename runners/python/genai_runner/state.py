# SPDX-License-Identifier: Apache-2.0
"""State between runs of a graph: KV caches, recurrent and convolution state, cross-attention (spec/pipeline.md, State).

The base of every way of updating (disciplines.py): their verbs are these, and the interpreter knows no others. `n` is
always the number of tokens that the coming run adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from genai_bundle.errors import UsageError
from genai_bundle.manifest import State
from genai_bundle.ports import Port, Ports, match_ports

from .backends.base import Array, Graph, Tensor
from .values import DTYPES


@dataclass(frozen=True, slots=True)
class Saved:
    """What a state held: arrays by past port, with `length` positions on the state's axis where it grows.

    `slots`: the position in each slot of a circular buffer.
    """

    arrays: Mapping[str, Array]
    length: int
    slots: Array | None = None


def form_of(port: Port, axis: int, length: int | None) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a state at `port`: 1 for each open dim, `length` (None: as the port has it) on `axis`."""
    dims = [dim if isinstance(dim, int) else 1 for dim in port.dims]
    if length is not None:
        dims[axis] = length
    return tuple(dims), np.dtype(DTYPES[port.dtype])


class Group(ABC):
    """One state of one request: base of the disciplines below. Arrays are keyed by the graph's past port.

    `goes_back`: whether the state can forget tokens that it was just given.
    """

    goes_back = True

    def __init__(self, name: str, spec: State, ports: Ports, graph: Graph) -> None:
        self.name, self.spec, self._ports, self._graph = name, spec, ports, graph
        self.pairs = self._match()
        self.length = 0
        self.reset()

    def _match(self) -> dict[str, str]:
        return match_ports(self.spec.ports, self._ports)

    def reset(self) -> None:
        """Empty the state."""
        self.length = 0

    @property
    def capacity(self) -> int | None:
        """Positions the state can hold in all, None when it is not bounded."""
        return self.spec.capacity

    @property
    def most(self) -> int | None:
        """Tokens that one run can take, None for any number."""
        port = self._ports.inputs[self.spec.tokens] if self.spec.tokens else None
        return port.dims[1] if port and len(port.dims) > 1 and isinstance(port.dims[1], int) else None

    @property
    def keep(self) -> tuple[str, ...]:
        """Outputs that a run must give to this state."""
        return tuple(self.pairs.values())

    @abstractmethod
    def feeds(self, n: int) -> dict[str, Tensor]:
        """What the past ports are fed."""

    def into(self) -> dict[str, Array]:
        """Outputs that the run writes in place."""
        return {}

    def commit(self, outputs: Mapping[str, Tensor], n: int) -> None:
        """Take the run's outputs."""
        self.length += n

    def can_rewind(self, length: int) -> bool:
        """Whether the state can go back to its first `length` positions."""
        return True

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions. UsageError where the state cannot; it is unchanged then."""
        if not self.can_rewind(length):
            raise UsageError(f"state {self.name!r} ({self.spec.update}) cannot be rewound", hint="Start a new request")
        self._rewind(length)

    def _rewind(self, length: int) -> None:
        self.length = length

    def save(self, start: int = 0, end: int | None = None) -> Saved:
        """A copy of what the state holds: all of it, or its positions from `start` to `end` where it grows."""
        return Saved(self._held(start, self.length if end is None else end), self.length)

    def _held(self, start: int, end: int) -> dict[str, Array]:
        """Copies of the arrays, of those positions."""
        index = (slice(None),) * self.spec.axis + (slice(start, end),)
        return {port: np.array(self._graph.array(tensor)[index], order="C") for port, tensor in self.feeds(0).items()}

    def load(self, saved: Saved) -> None:
        """Hold what another state of the same port names held when it was saved."""
        self.reset()
        self._load(saved)
        self.length = saved.length

    @abstractmethod
    def _load(self, saved: Saved) -> None: ...

    def past(self, port: str) -> Tensor:
        """The current past, for a state that reads this one."""
        return self.feeds(0)[port]

    def field(self, name: str, n: int, port: Port) -> Array:
        """`state.field` for a run of n tokens, in the dtype and rank of `port`."""
        value, dtype = self._field(name, n), DTYPES[port.dtype]
        if isinstance(value, int):
            return np.array(value, dtype, ndmin=len(port.dims))
        return value.astype(dtype).reshape(-1) if len(port.dims) == 1 else value.astype(dtype)

    def _field(self, name: str, n: int) -> Array | int:
        total = self.length + n
        if name == "mask":
            return self._mask(total)
        if name == "positions":
            return np.arange(self.length, total, dtype=np.int64)[None]
        return {"len": self.length, "total": total, "last": total - 1, "capacity": self.capacity or 0}[name]

    def _mask(self, total: int) -> Array:
        return np.ones((1, total), np.int64)

    def _zeros(self, port: str, length: int | None) -> Array:
        """Zeros in the port's form."""
        return np.zeros(*self.form(port, length))

    def form(self, port: str, length: int | None) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The port's shape: one request, hence 1 for each open dim, and `length` on the state's axis; and its type."""
        return form_of(self._ports.inputs[port], self.spec.axis, length)
