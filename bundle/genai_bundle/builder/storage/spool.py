# SPDX-License-Identifier: Apache-2.0
"""Bytes that were computed for a bundle and are not in it yet, in a file instead of in memory.

What is quantised is needed several times: for its digest, for the shard, and for the model that the bundle is compared
with. It is computed once, kept in a temporary file beside the bundle's own (where there must be room for as much
again), and read through a mapping.
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from genai_bundle.errors import UsageError

_ALIGNMENT = 64


class Spool:
    """A temporary file in `folder`. The system removes it when it is closed, or when the process dies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._end = 0
        self._view = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view = memoryview(b"")  # a view that somebody still holds keeps the mapping alive
        if self._file is not None:
            self._file.close()

    def reserve(self, length: int) -> int:
        """The offset of `length` bytes that nothing else gets."""
        offset = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self._end = offset + length
        return offset

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Write into a reserved range."""
        try:
            file = self._opened()
            file.seek(offset)
            file.write(data)
        except OSError as error:
            message = f"cannot keep quantised weights here: {error.strerror}"
            raise UsageError(message, where=str(self._folder)) from error

    def view(self, offset: int, length: int) -> memoryview:
        """Bytes that were put. Pages come from the file when they are read, and the system may drop them again."""
        if offset + length > len(self._view):
            file = self._opened()
            file.truncate(self._end)
            self._view = memoryview(mmap.mmap(file.fileno(), self._end, access=mmap.ACCESS_READ))
        return self._view[offset : offset + length]

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, prefix=".genai-", buffering=0)  # noqa: SIM115
        return self._file
