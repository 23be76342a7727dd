# SPDX-License-Identifier: Apache-2.0
"""What requests have computed for the beginnings of their prompts, kept for others that begin alike.

Tokens are kept in blocks of a fixed size, each known by its tokens and the block before it, so that prompts with a
common beginning share its memory. Where memory is bounded, the blocks that were not used for the longest time go first,
the last of a chain before those that it stands on.

Only states that grow by one position a token and can be cut anywhere are kept, of bodies that compute from ids alone.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .backends.base import Array
from .body import Body
from .state import Saved

BLOCK = 32
"""Tokens of a block. Smaller ones waste less of a common beginning, and take more copies to put together."""

KEPT = ("append", "shared", "scatter")
"""Updates of states that hold one position a token, each of which depends only on the tokens until then."""

Key = tuple[object, tuple[int, ...]]


@dataclass(slots=True, eq=False)
class Block:
    """The states of some tokens, [.., BLOCK, ..] by state and past port. `key`: the block before, and the tokens."""

    key: Key
    before: Block | None
    arrays: Mapping[tuple[str, str], Array]
    pinned: bool = False
    used: int = 0
    followers: int = 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class PrefixCache:
    """States of token sequences. May be used from several threads.

    limit: the most bytes that it holds; pinned blocks count and stay.
    """

    def __init__(self, limit: int, block: int = BLOCK) -> None:
        self.limit, self.block = limit, block
        self.nbytes = self.hits = self.queries = 0
        self._blocks: dict[Key, Block] = {}
        self._clock = itertools.count(1)
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._blocks)

    def recall(self, body: Body, adapter: str | None, tokens: Sequence[int]) -> int:
        """Let the body's empty states hold as many of the first tokens as are known; one is always left to run."""
        if not fits(body) or any(group.length for group in body.states):
            return 0
        with self._lock:
            chain = list(self._chain(adapter, tokens[:-1]))
            self.queries += len(tokens)
            self.hits += len(chain) * self.block
            now = next(self._clock)
            for block in chain:
                block.used = now
        if chain:
            for group in body.states:
                arrays = {
                    port: np.concatenate([block.arrays[group.name, port] for block in chain], axis=group.spec.axis)
                    for port in group.pairs
                }
                group.load(Saved(arrays, len(chain) * self.block))
        return len(chain) * self.block

    def remember(self, body: Body, adapter: str | None, tokens: Sequence[int], *, pinned: bool = False) -> None:
        """Keep what the body's states hold for `tokens`, all of which were run, as far as it is whole blocks."""
        if not fits(body) or any(group.length != len(tokens) for group in body.states):
            return
        with self._lock:
            known = sum(1 for _ in self._chain(adapter, tokens)) * self.block
            whole = len(tokens) // self.block * self.block
            if known < whole:
                held = {group.name: group.save(known, whole).arrays for group in body.states}
                axes = {group.name: group.spec.axis for group in body.states}
                self._add(adapter, tokens[:whole], known, held, axes)
            if pinned:
                for block in self._chain(adapter, tokens):
                    block.pinned = True
            self._evict()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._blocks, self.nbytes = {}, 0

    def _chain(self, adapter: str | None, tokens: Sequence[int]) -> Iterator[Block]:
        """The known blocks that the tokens begin with."""
        before: object = adapter
        for start in range(0, len(tokens) - self.block + 1, self.block):
            block = self._blocks.get((before, tuple(tokens[start : start + self.block])))
            if block is None:
                return
            yield block
            before = block

    def _add(
        self,
        adapter: str | None,
        tokens: Sequence[int],
        known: int,
        held: Mapping[str, Mapping[str, Array]],
        axes: Mapping[str, int],
    ) -> None:
        before = list(self._chain(adapter, tokens[:known]))[-1:]
        last, now = before[0] if before else None, next(self._clock)
        for start in range(known, len(tokens), self.block):
            key: Key = (last if last is not None else adapter, tuple(tokens[start : start + self.block]))
            arrays = dict[tuple[str, str], Array]()
            for name, ports in held.items():
                index = (slice(None),) * axes[name] + (slice(start - known, start - known + self.block),)
                arrays |= {(name, port): np.ascontiguousarray(array[index]) for port, array in ports.items()}
            block = Block(key, last, arrays, used=now)
            if last is not None:
                last.followers += 1
            self._blocks[key] = last = block
            self.nbytes += block.nbytes

    def _evict(self) -> None:
        while self.nbytes > self.limit:
            ends = [block for block in self._blocks.values() if not block.followers and not block.pinned]
            if not ends:
                return
            oldest = min(ends, key=lambda block: block.used)
            del self._blocks[oldest.key]
            self.nbytes -= oldest.nbytes
            if oldest.before is not None:
                oldest.before.followers -= 1


def fits(body: Body) -> bool:
    """Whether what the body's states hold for some tokens can be kept, cut and given to another request."""
    return bool(body.states) and body.only_ids and all(group.spec.update in KEPT for group in body.states)
