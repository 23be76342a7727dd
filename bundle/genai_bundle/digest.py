# SPDX-License-Identifier: Apache-2.0
"""The digests of one member, computed in one pass over its bytes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator

from .records import CHUNK_SIZE, FileEntry

Block = bytes | memoryview
"""A run of bytes; a memoryview is one-dimensional, of format `B`."""

ZERO_DIGEST = "0" * 64
"""Stands for a digest that is not known yet: every digest is as long, so the manifest's length is known before."""


def chunk_count(size: int) -> int:
    """The number of chunk digests of `size` bytes of weights; none for an empty shard."""
    return -(-size // CHUNK_SIZE)


class Digester:
    """Feed it a member's bytes in order. `sha256`, `chunks` (hex digits) and `crc` are right at any moment.

    chunked: also compute one digest for each 4 MiB, as weights have them.
    """

    def __init__(self, chunked: bool) -> None:
        self.size = 0
        self.crc = 0
        self._whole = hashlib.sha256()
        self._chunked = chunked
        self._done: list[str] = []
        self._chunk = hashlib.sha256()

    def update(self, block: Block) -> None:
        for piece in _at_chunk_ends(memoryview(block), self.size % CHUNK_SIZE):
            self._whole.update(piece)
            self.crc = zlib.crc32(piece, self.crc)
            self.size += len(piece)
            if self._chunked:
                self._chunk.update(piece)
                if self.size % CHUNK_SIZE == 0:
                    self._done.append(self._chunk.hexdigest())
                    self._chunk = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._whole.hexdigest()

    @property
    def chunks(self) -> tuple[str, ...]:
        rest = (self._chunk.hexdigest(),) if self.size % CHUNK_SIZE else ()
        return (*self._done, *rest)

    @property
    def entry(self) -> FileEntry:
        """What the manifest says of this member."""
        return FileEntry(self.size, self.sha256, self.chunks if self._chunked else None)


def bundle_id(manifest: bytes) -> str:
    """A bundle's identity: the digest of its manifest, which holds the digests of everything else."""
    return "sha256:" + hashlib.sha256(manifest).hexdigest()


def unknown_entry(size: int, chunked: bool) -> FileEntry:
    """An entry as long as the true one, before the bytes have been read."""
    return FileEntry(size, ZERO_DIGEST, (ZERO_DIGEST,) * chunk_count(size) if chunked else None)


def _at_chunk_ends(block: memoryview, position: int) -> Iterator[memoryview]:
    """Cuts a block that begins `position` bytes into a chunk wherever a chunk ends."""
    start = 0
    while start < len(block):
        end = min(len(block), start + CHUNK_SIZE - position)
        yield block[start:end]
        start, position = end, 0
