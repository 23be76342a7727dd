# SPDX-License-Identifier: Apache-2.0
"""Lay tensors out in shards, `weights/PREFIX-00.bin` (spec/container.md, Shards).

Nothing is copied here: a shard knows for each tensor where it goes and how to get its bytes when the bundle is written.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from genai_bundle.writer import Shard

INLINE = 1 << 10
"""Bytes. Smaller tensors stay in the graph, where they take part in shape inference."""

PAGED = 1 << 20
"""Bytes. Tensors from this size on begin at a multiple of 65536, others at one of 64."""

MAX_SHARD = 1 << 30
"""Bytes. A tensor larger than this gets a shard of its own."""

Read = Callable[[], bytes | memoryview]


def step_of(length: int) -> int:
    """A tensor of so many bytes begins at a multiple of this."""
    return 65536 if length >= PAGED else 64


def side_by_side(lengths: Sequence[int]) -> bool:
    """Whether tensors of these lengths may follow each other without gaps."""
    starts = itertools.accumulate(lengths[:-1], initial=0)
    return all(start % step_of(length) == 0 for start, length in zip(starts, lengths, strict=True))


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: the member, and offset and length in it."""

    member: str
    offset: int
    length: int


@dataclass
class Packer:
    """Lays tensors out in shards `weights/PREFIX-00.bin`, equal bytes once."""

    prefix: str
    _segments: list[list[tuple[int, Read]]] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)
    _places: dict[bytes, Place] = field(default_factory=dict)

    def place(self, length: int, read: Read) -> Place:
        """The place of `length` bytes. `read` is called now for their digest, and again when the bundle is written."""
        digest = hashlib.sha256(read()).digest()
        if digest not in self._places:
            start = self._start(length, step_of(length))
            self._segments[-1].append((start, read))
            self._ends[-1] = start + length
            self._places[digest] = Place(self._member(len(self._ends) - 1), start, length)
        return self._places[digest]

    def join(self, parts: Sequence[tuple[int, Read]]) -> Place:
        """The place of tensors side by side, whose lengths allow it; each of them is found there by itself too."""
        total = sum(length for length, _ in parts)
        start = end = self._start(total, step_of(total))
        for length, read in parts:
            place = Place(self._member(len(self._ends) - 1), end, length)
            self._places.setdefault(hashlib.sha256(read()).digest(), place)
            self._segments[-1].append((end, read))
            end += length
        self._ends[-1] = end
        return Place(self._member(len(self._ends) - 1), start, total)

    def _start(self, length: int, step: int) -> int:
        """Where so many bytes may begin in the last shard, which is a new one where they do not fit."""
        start = -(-self._ends[-1] // step) * step if self._ends else 0
        if self._ends and (not self._ends[-1] or start + length <= MAX_SHARD):
            return start
        self._segments.append([])
        self._ends.append(0)
        return 0

    def shards(self) -> dict[str, Shard]:
        """The shards, by their member's path."""
        return {self._member(index): Shard(end, self._segments[index]) for index, end in enumerate(self._ends)}

    def _member(self, index: int) -> str:
        return f"weights/{self.prefix}-{index:02}.bin"
