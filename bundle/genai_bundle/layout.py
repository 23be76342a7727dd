# SPDX-License-Identifier: Apache-2.0
"""Where every byte of a bundle file lies: a pure function of the manifest's length and the members' sizes.

Writer and reader use the same function, and so can a browser that has fetched only the manifest: nothing about
positions is stored twice. All positions and sizes are in bytes from the start of the file.

Layout (spec/container.md): `mimetype`, `manifest.json`, the other members in the order of their paths' bytes, weights
behind them, a signature last, then the central directory. A member's data begins at the smallest multiple of its
alignment that leaves room for its local header, and the header ends right where the data begins. Zero bytes fill the
gap before a header.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .records import MANIFEST_MEMBER, MIMETYPE_MEMBER, SIGNATURE_MEMBER, WEIGHTS_FOLDER

MIMETYPE = b"application/vnd.genai-bundle+zip"
"""The content of the member `mimetype`: the bundle's media type, without a newline."""

MAX_MEMBERS = 65534
"""One below the count at which ZIP64 would be needed: the directory then stays small for a hostile file as well."""

MAX_MANIFEST = 64 << 20
MAX_SIGNATURE = 1 << 20

ZIP64_LIMIT = 0xFFFFFFFF
LOCAL_HEADER = 30
CENTRAL_HEADER = 46
LOCAL_ZIP64 = 20
END_RECORD = 22
END_ZIP64 = 56
END_LOCATOR = 20


@dataclass(frozen=True, slots=True)
class Placed:
    """One member's place: its local header at `header`, its `size` bytes of data at `offset`."""

    path: str
    size: int
    header: int
    offset: int

    @property
    def zip64_size(self) -> bool:
        return self.size >= ZIP64_LIMIT

    @property
    def zip64_header(self) -> bool:
        return self.header >= ZIP64_LIMIT

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Layout:
    """The whole file: the members in order, the central directory at `directory`, and the file's `total` length."""

    members: tuple[Placed, ...]
    directory: int
    directory_size: int
    total: int

    @property
    def zip64_end(self) -> bool:
        return self.directory >= ZIP64_LIMIT


def is_weights(path: str) -> bool:
    """Tells whether a member holds weights: aligned for mapping, checked by chunks, not hashed on opening."""
    return path.startswith(WEIGHTS_FOLDER)


def alignment(path: str) -> int:
    """The multiple, in bytes, at which a member's data begins.

    65536 covers pages of 4, 16 and 64 KiB and the mapping granularity of Windows; 64 is a cache line, and enough for
    any element type.
    """
    if path == MIMETYPE_MEMBER:
        return 1  # its content stands at byte 38, where tools that tell file types look for it
    return 65536 if is_weights(path) else 64


def order(paths: Iterable[str]) -> list[str]:
    """Sorts member paths (without the first two) as the file holds them: weights late, a signature last."""

    def rank(path: str) -> tuple[bool, bool, bytes]:
        return path == SIGNATURE_MEMBER, is_weights(path), path.encode("utf-8", "surrogateescape")

    return sorted(paths, key=rank)


def place(path: str, size: int, after: int) -> Placed:
    """Places one member behind the byte `after`, the end of the member before it."""
    header = LOCAL_HEADER + len(path) + (LOCAL_ZIP64 if size >= ZIP64_LIMIT else 0)
    step = alignment(path)
    offset = -(-(after + header) // step) * step
    return Placed(path, size, offset - header, offset)


def central_size(member: Placed) -> int:
    """Length of a member's entry in the central directory; ZIP64 adds a field for what does not fit 32 bits."""
    wide = 16 * member.zip64_size + 8 * member.zip64_header
    return CENTRAL_HEADER + len(member.path) + (4 + wide if wide else 0)


def plan_members(members: Sequence[tuple[str, int]]) -> Layout:
    """Places members, `mimetype` and `manifest.json` among them, in the order given."""
    placed: list[Placed] = []
    after = 0
    for path, size in members:
        placed.append(place(path, size, after))
        after = placed[-1].end
    entries = sum(map(central_size, placed))
    tail = END_RECORD + (END_ZIP64 + END_LOCATOR if after >= ZIP64_LIMIT else 0)
    return Layout(tuple(placed), after, entries, after + entries + tail)


def plan(manifest_size: int, files: Iterable[tuple[str, int]]) -> Layout:
    """The layout of a bundle file from the length of its manifest and the (path, size) pairs that the manifest lists.

    Example: `plan(len(raw), [(path, entry.size) for path, entry in manifest.files.items()])`.
    """
    sizes = dict(files)
    rest = [(path, sizes[path]) for path in order(sizes)]
    return plan_members([(MIMETYPE_MEMBER, len(MIMETYPE)), (MANIFEST_MEMBER, manifest_size), *rest])
