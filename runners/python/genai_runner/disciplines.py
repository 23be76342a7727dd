# SPDX-License-Identifier: Apache-2.0
"""The ways of updating a state, one class each (spec/pipeline.md, State)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from genai_bundle.ports import Ports, match_ports

from .backends.base import Array, Tensor
from .state import Group, Saved

GROWTH = 256  # a shared buffer starts at this many positions, or what the first run needs, and doubles


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
        self._past = dict(self._held(0, length))
        super()._rewind(length)

    def _load(self, saved: Saved) -> None:
        self._past = dict(saved.arrays)

    def _whole(self) -> dict[str, Array]:
        return {port: np.array(self._graph.array(tensor), order="C") for port, tensor in self._past.items()}


class Buffer(Group):
    """One fixed array for past and present, written in place: `shared` (grows by doubling up to the capacity),
    `scatter` (exactly the capacity)."""

    def reset(self) -> None:
        super().reset()
        if self.spec.update != "shared":
            self._hold({port: self._zeros(port, self._size) for port in self.pairs})
        elif not hasattr(self, "_arrays"):  # a shared buffer that grew is kept: beyond the length it is never read
            self._hold({port: self._zeros(port, 0) for port in self.pairs})

    def _hold(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays
        self._into = {present: arrays[past] for past, present in self.pairs.items()}

    @property
    def _size(self) -> int:
        return self.spec.capacity or 0

    def feeds(self, n: int) -> dict[str, Tensor]:
        if self.spec.update == "shared":
            self._reserve(self.length + n)
        return self._arrays

    def into(self) -> dict[str, Array]:
        return self._into

    def _mask(self, total: int) -> Array:
        if self.spec.update == "shared":
            return super()._mask(total)
        return (np.arange(self._size) < total).astype(np.int64)[None]

    def _load(self, saved: Saved) -> None:
        if self.spec.update == "shared":
            self._reserve(saved.length)
        for port, array in saved.arrays.items():
            index = (slice(None),) * self.spec.axis + (slice(0, array.shape[self.spec.axis]),)
            self._arrays[port][index] = array

    def _reserve(self, total: int) -> None:
        axis = self.spec.axis
        held = next(iter(self._arrays.values())).shape[axis]
        if total <= held:
            return
        size = max(total, GROWTH, 2 * held)
        size = min(size, max(self._size, total))
        index = (slice(None),) * axis + (slice(0, self.length),)
        arrays = {port: self._zeros(port, size) for port in self.pairs}
        for port, old in self._arrays.items():
            arrays[port][index] = old[index]
        self._hold(arrays)


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

    def save(self, start: int = 0, end: int | None = None) -> Saved:
        return Saved(self._held(0, self._size), self.length, self._slots.copy())

    def _load(self, saved: Saved) -> None:
        super()._load(saved)
        assert saved.slots is not None
        self._slots = saved.slots.copy()

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

    def _field(self, name: str, n: int) -> Array | int:
        return self._size if name == "capacity" else super()._field(name, n)


class Replace(Append):
    """Recurrent and convolution state: zeros at first, then whatever the graph returned."""

    goes_back = False

    def _start(self, port: str) -> Array:
        return self._zeros(port, None)

    def can_rewind(self, length: int) -> bool:
        return length == 0

    def _rewind(self, length: int) -> None:
        self.reset()

    def _held(self, start: int, end: int) -> dict[str, Array]:
        return self._whole()


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

    def _held(self, start: int, end: int) -> dict[str, Array]:
        return self._whole()

    def _load(self, saved: Saved) -> None:
        super()._load(saved)
        self._filled = saved.length > 0


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

    def _field(self, name: str, n: int) -> Array | int:
        # It adds nothing of its own: the run sees what the owner holds.
        return self.owner._field(name, 0)

    def _rewind(self, length: int) -> None:
        pass

    def save(self, start: int = 0, end: int | None = None) -> Saved:
        return Saved({}, self.length)

    def _load(self, saved: Saved) -> None:
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
