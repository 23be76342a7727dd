# SPDX-License-Identifier: Apache-2.0
"""State between runs of a graph: KV caches, recurrent and convolution state, cross-attention (spec/pipeline.md, State).

One class for each way of updating. All have the same six verbs; the interpreter knows no others. `n` is always the
number of tokens that the coming run adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from genai_bundle.errors import UsageError
from genai_bundle.manifest import State
from genai_bundle.ports import Port, Ports, match_ports

from .backends.base import Array, Graph, Tensor
from .values import DTYPES

_GROWTH = 256  # a shared buffer starts at this many positions, or what the first run needs, and doubles


class Group(ABC):
    """One state of one request: base of the disciplines below. Arrays are keyed by the graph's past port."""

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

    def past(self, port: str) -> Tensor:
        """The current past, for a state that reads this one."""
        return self.feeds(0)[port]

    def field(self, name: str, n: int, port: Port) -> Array:
        """`state.field` for a run of n tokens, in the dtype and rank of `port`."""
        value = self._field(name, n)
        dtype = DTYPES[port.dtype]
        if value.ndim == 0:
            return value.astype(dtype).reshape((1,) * len(port.dims))
        return value.astype(dtype).reshape(-1) if len(port.dims) == 1 else value.astype(dtype)

    def _field(self, name: str, n: int) -> Array:
        total = self.length + n
        if name == "mask":
            return self._mask(total)
        if name == "positions":
            return np.arange(self.length, total, dtype=np.int64)[None]
        return np.asarray({"len": self.length, "total": total, "last": total - 1, "capacity": self.capacity or 0}[name])

    def _mask(self, total: int) -> Array:
        return np.ones((1, total), np.int64)

    def _zeros(self, port: str, length: int | None) -> Array:
        """Zeros in the port's shape: one request, hence 1 for each open dim, and `length` on the state's axis."""
        found = self._ports.inputs[port]
        dims = [d if isinstance(d, int) else 1 for d in found.dims]
        if length is not None:
            dims[self.spec.axis] = length
        return np.zeros(dims, DTYPES[found.dtype])


class Append(Group):
    """past + new = present, held in the engine's own tensors."""

    def reset(self) -> None:
        super().reset()
        self._past: dict[str, Tensor] = {port: self._start(port) for port in self.pairs}

    def _start(self, port: str) -> Array:
        return self._zeros(port, 0)

    def feeds(self, n: int) -> dict[str, Tensor]:
        return self._past

    def commit(self, outputs: Mapping[str, Tensor], n: int) -> None:
        super().commit(outputs, n)
        self._past = {past: outputs[present] for past, present in self.pairs.items()}

    def _rewind(self, length: int) -> None:
        index = (slice(None),) * self.spec.axis + (slice(0, length),)
        self._past = {
            port: np.ascontiguousarray(self._graph.array(tensor)[index]) for port, tensor in self._past.items()
        }
        super()._rewind(length)


class Buffer(Group):
    """One fixed array for past and present, written in place: `shared` (grows by doubling up to the capacity),
    `scatter` (exactly the capacity)."""

    def reset(self) -> None:
        super().reset()
        if self.spec.update != "shared":
            self._arrays = {port: self._zeros(port, self._size) for port in self.pairs}
        elif not hasattr(self, "_arrays"):  # a shared buffer that grew is kept: beyond the length it is never read
            self._arrays = {port: self._zeros(port, 0) for port in self.pairs}

    @property
    def _size(self) -> int:
        return self.spec.capacity or 0

    def feeds(self, n: int) -> dict[str, Tensor]:
        if self.spec.update == "shared":
            self._reserve(self.length + n)
        return dict(self._arrays)

    def into(self) -> dict[str, Array]:
        return {present: self._arrays[past] for past, present in self.pairs.items()}

    def _mask(self, total: int) -> Array:
        if self.spec.update == "shared":
            return super()._mask(total)
        return (np.arange(self._size) < total).astype(np.int64)[None]

    def _reserve(self, total: int) -> None:
        axis = self.spec.axis
        held = next(iter(self._arrays.values())).shape[axis]
        if total <= held:
            return
        size = max(total, _GROWTH, 2 * held)
        size = min(size, max(self._size, total))
        index = (slice(None),) * axis + (slice(0, self.length),)
        for port, old in self._arrays.items():
            new = self._zeros(port, size)
            new[index] = old[index]
            self._arrays[port] = new


class Ring(Buffer):
    """A circular buffer for a sliding window: position p lies in slot p mod size."""

    def reset(self) -> None:
        super().reset()
        self._slots = np.full(self._size, -1)  # the position that each slot holds, -1 for none

    @property
    def _size(self) -> int:
        return self.spec.capacity or self._window

    @property
    def _window(self) -> int:
        return self.spec.window or 0

    @property
    def capacity(self) -> int | None:
        return None  # old positions fall out; the sequence may be of any length

    @property
    def most(self) -> int | None:
        # A run overwrites the oldest slots before its first token has read its window.
        room = self._size - self._window + 1
        static = super().most
        return room if static is None else min(room, static)

    def commit(self, outputs: Mapping[str, Tensor], n: int) -> None:
        self._slots = self._after(self.length + n)
        super().commit(outputs, n)

    def can_rewind(self, length: int) -> bool:
        needed = np.arange(max(0, length - self._window + 1), length)  # what the next token reads
        return bool(np.isin(needed, self._slots).all())

    def _after(self, total: int) -> Array:
        slots, new = self._slots.copy(), np.arange(self.length, total)
        slots[new % self._size] = new
        return slots

    def _mask(self, total: int) -> Array:
        slots = self._after(total)
        return ((slots >= 0) & (slots < total)).astype(np.int64)[None]

    def _field(self, name: str, n: int) -> Array:
        return np.asarray(self._size) if name == "capacity" else super()._field(name, n)


class Replace(Append):
    """Recurrent and convolution state: zeros at first, then whatever the graph returned."""

    def _start(self, port: str) -> Array:
        return self._zeros(port, None)

    def can_rewind(self, length: int) -> bool:
        return length == 0

    def _rewind(self, length: int) -> None:
        self.reset()


class Once(Append):
    """Cross-attention: the first run fills it, later runs only read it."""

    def reset(self) -> None:
        super().reset()
        self._filled = False

    @property
    def keep(self) -> tuple[str, ...]:
        return () if self._filled else super().keep

    def commit(self, outputs: Mapping[str, Tensor], n: int) -> None:
        if self._filled:
            self.length += n
        else:
            super().commit(outputs, n)
            self._filled = True

    def _rewind(self, length: int) -> None:
        self.length = length  # what was filled depends on no token


class Read(Group):
    """Another state, borrowed: `owner` is set by the request."""

    owner: Group

    def _match(self) -> dict[str, str]:
        return {}

    def feeds(self, n: int) -> dict[str, Tensor]:
        held = {port: self.owner.past(past) for port, past in self.borrowed.items()}
        reader, owner = (getattr(graph, "graph", graph) for graph in (self._graph, self.owner._graph))
        if type(reader) is type(owner):
            return held
        # Another engine, where one graph is on the host: it understands no handles of the owner's.
        return {port: self.owner._graph.array(tensor) for port, tensor in held.items()}

    @property
    def borrowed(self) -> dict[str, str]:
        return match_ports(self.spec.ports, Ports(self._ports.inputs, self.owner._ports.inputs))

    def _field(self, name: str, n: int) -> Array:
        # It adds nothing of its own: the run sees what the owner holds.
        return self.owner._field(name, 0)

    def _rewind(self, length: int) -> None:
        pass


DISCIPLINES: Mapping[str, type[Group]] = {
    "append": Append,
    "shared": Buffer,
    "scatter": Buffer,
    "ring": Ring,
    "replace": Replace,
    "once": Once,
    "read": Read,
}
