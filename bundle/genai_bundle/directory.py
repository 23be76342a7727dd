# SPDX-License-Identifier: Apache-2.0
"""Reads the directory of a bundle file strictly: one rule for each accident, and no second opinion about any byte.

The sizes and names come from the central directory; `layout` says where everything has to lie; the local headers, the
gaps and the end records must then be exactly what a writer would have put there. Stock ZIP readers differ on
duplicates, on records that contradict each other, on overlaps and on bytes before or after the archive, and a file that
means one thing to a scanner and another to a runner is an attack. Here it is an error.

Everything allocated is bounded by the length of the file's directory, which holds at most 65534 entries.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from . import archive
from .errors import ContainerError
from .layout import (
    MAX_MEMBERS,
    MIMETYPE,
    Layout,
    Placed,
    order,
    place,
    plan_members,
)
from .paths import find_clash, path_problem
from .records import MANIFEST_MEMBER, MIMETYPE_MEMBER

AGAIN = "Fetch or build the bundle again"
REBUILD = "This file was not written by a bundle writer; build it with one"
ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
DESCRIPTOR = 1 << 3


@dataclass(frozen=True, slots=True)
class Directory:
    """A bundle file's layout, and the members' CRC-32 in the same order (checked against the data by `verify`)."""

    layout: Layout
    crcs: tuple[int, ...]


def read_directory(data: memoryview) -> Directory:
    """Checks all of a bundle file but its members' content. `data` is the whole file, `B` format; it is not copied.

    Raises ContainerError.
    """
    _check_start(data)
    count, start, stop = _read_end(data)
    entries = _read_entries(data, count, start, stop)
    _check_names([entry.path for entry in entries])
    after = 0
    for entry in entries:
        _check_local(data, entry, start)
        after = _check_place(data, entry, after, start).end
    layout = plan_members([(entry.path, entry.size) for entry in entries])
    if layout.directory != start:
        raise _refuse("C28", start, f"the directory begins {start - after} bytes behind the last member", REBUILD)
    return Directory(layout, tuple(entry.crc for entry in entries))


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    size: int
    header: int
    crc: int


def _refuse(rule: str, where: int | str, message: str, hint: str) -> ContainerError:
    place = f"byte {where}" if isinstance(where, int) else where
    return ContainerError(message, where=place, rule=rule, hint=hint)


def _check_start(data: memoryview) -> None:
    """The file begins with the member `mimetype`, whose content tools that tell file types find at byte 38."""
    if not data:
        raise _refuse("C1", 0, "the file is empty", AGAIN)
    header = archive.LOCAL.size + len(MIMETYPE_MEMBER)
    name = bytes(data[archive.LOCAL.size : header])
    if bytes(data[:4]) != archive.LOCAL_SIGNATURE or name != MIMETYPE_MEMBER.encode():
        found = bytes(data[:4])
        raise _refuse("C1", 0, f"the file does not begin with the member `mimetype` but with {found!r}", REBUILD)
    content = bytes(data[header : header + len(MIMETYPE)])
    if content != MIMETYPE and len(content) == len(MIMETYPE):
        raise _refuse("C2", header, f"the media type is {content!r}, not {MIMETYPE!r}", "This is another kind of file")


def _read_end(data: memoryview) -> tuple[int, int, int]:
    """Returns the number of entries, and where the directory begins and stops."""
    at = len(data) - archive.END.size
    if at < 0 or bytes(data[at : at + 4]) != archive.END_SIGNATURE or data[at + 20] or data[at + 21]:
        raise _bad_end(data)
    _, disk, first, here, count, size, start, _ = archive.END.unpack_from(data, at)
    if disk or first or here != count:
        raise _refuse("C6", at, "the archive is split over files, or has two counts of entries", REBUILD)
    stop = at
    if start == archive.WIDE:
        stop = at - archive.LOCATOR.size - archive.END64.size
        start = _read_end64(data, stop, count, size)
    if count > MAX_MEMBERS:
        raise _refuse("C9", at, f"{count} members or more; a bundle has at most {MAX_MEMBERS}", REBUILD)
    if start + size != stop:
        raise _refuse("C8", at, f"the directory is said to be at {start} to {start + size}, not up to {stop}", AGAIN)
    return count, start, stop


def _bad_end(data: memoryview) -> ContainerError:
    """Tells a truncated file from one with a comment or with bytes behind its end."""
    tail = bytes(data[-(archive.END.size + 0xFFFF) :])
    found = tail.rfind(archive.END_SIGNATURE)
    behind = len(tail) - found - archive.END.size
    if found < 0 or behind < 0:
        return _refuse("C3", len(data), "the file ends early: its last record is missing", AGAIN)
    at = len(data) - len(tail) + found
    if int.from_bytes(tail[found + 20 : found + 22], "little") == behind:
        return _refuse("C5", at, f"the archive has a comment of {behind} bytes", REBUILD)
    return _refuse("C4", at, f"{behind} bytes stand behind the end of the archive", AGAIN)


def _read_end64(data: memoryview, at: int, count: int, size: int) -> int:
    """Returns where the directory begins; both ZIP64 end records must be there, needed, and say what the others say."""
    if at < 0:
        raise _refuse("C7", 0, "the end record points to a ZIP64 record that the file is too short for", AGAIN)
    end = archive.END64.unpack_from(data, at)
    start = int(end[-1])
    needed = archive.VERSION_ZIP64
    true = (archive.END64_SIGNATURE, archive.END64.size - 12, needed, needed, 0, 0, count, count, size, start)
    locator = archive.LOCATOR.unpack_from(data, at + archive.END64.size)
    if end != true or start < archive.WIDE or locator != (archive.LOCATOR_SIGNATURE, 0, at, 1):
        raise _refuse("C7", at, "the ZIP64 end records are missing, needless, or contradict the end record", REBUILD)
    return start


def _read_entries(data: memoryview, count: int, start: int, stop: int) -> list[_Entry]:
    entries: list[_Entry] = []
    at = start
    for _ in range(count):
        if at + archive.CENTRAL.size > stop:
            raise _refuse("C8", at, f"the directory ends after {len(entries)} of {count} entries", AGAIN)
        fields = archive.CENTRAL.unpack_from(data, at)
        if fields[0] != archive.CENTRAL_SIGNATURE:
            raise _refuse("C8", at, "no directory entry where one is expected", AGAIN)
        begin, (names, extras, comments) = at + archive.CENTRAL.size, fields[10:13]
        at = begin + names + extras + comments
        if at > stop:
            raise _refuse("C8", begin, "a directory entry reaches beyond the directory", AGAIN)
        raw = bytes(data[begin : begin + names])
        entries.append(_read_entry(fields, raw, bytes(data[begin + names : begin + names + extras])))
    if at != stop:
        raise _refuse("C8", at, f"the directory holds more than the {count} entries that the end record tells", REBUILD)
    return entries


def _read_entry(fields: tuple[int, ...], raw: bytes, extra: bytes) -> _Entry:
    """Checks one directory entry on its own."""
    _, made, needed, flags, method, time, date, crc, stored, size, _, _, comment, disk, inner, outer, header = fields
    path = raw.decode("latin-1")
    if problem := path_problem(path):
        raise _refuse("C20", ascii(path), f"the member's name {problem}", "Rename it")
    if flags & ENCRYPTED:
        raise _refuse("C11", path, "the member is encrypted", REBUILD)
    if flags & DESCRIPTOR:
        raise _refuse("C12", path, "the member has a data descriptor behind its content", REBUILD)
    if flags:
        raise _refuse("C13", path, f"the flags are {flags:#06x}, not 0", REBUILD)
    if method:
        raise _refuse("C10", path, f"the member is compressed (method {method}), not stored", REBUILD)
    if (time, date) != (archive.TIME, archive.DATE):
        raise _refuse("C15", path, "the time is not 1980-01-01 00:00", REBUILD)
    if stored != size:
        raise _refuse("C16", path, f"the stored size {stored} is not the size {size}", AGAIN)
    if comment:
        raise _refuse("C18", path, f"the entry has a comment of {comment} bytes", REBUILD)
    if disk or inner or outer:
        raise _refuse("C19", path, f"the entry has attributes ({outer:#x}), as links and folders do", REBUILD)
    size, header = _widen(path, size, header, extra)
    if {made, needed} != {archive.version(Placed(path, size, header, 0))}:
        raise _refuse("C14", path, f"the versions {made} and {needed} are not those of the profile", REBUILD)
    return _Entry(path, size, header, crc)


def _widen(path: str, size: int, header: int, extra: bytes) -> tuple[int, int]:
    """Reads the values that the ZIP64 extra field holds, which must be those that need it."""
    wide = 2 * (size == archive.WIDE) + (header == archive.WIDE)
    if len(extra) == 4 + 8 * wide > 4:
        values = struct.unpack(f"<{wide}Q", extra[4:])
        size = values[0] if size == archive.WIDE else size
        header = values[-1] if header == archive.WIDE else header
    if archive.central_extra(Placed(path, size, header, 0)) != extra:
        raise _refuse("C17", path, "the entry has an extra field, or not the ZIP64 field that its values need", REBUILD)
    return size, header


def _check_names(paths: list[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise _refuse("C21", path, "two members have this name", REBUILD)
        seen.add(path)
    if clash := find_clash(paths):
        raise _refuse("C22", clash[0], f"the name cannot stand beside {clash[1]!r} on every file system", "Rename one")
    if MANIFEST_MEMBER not in seen:
        raise _refuse("C30", MANIFEST_MEMBER, "the bundle has no manifest", REBUILD)
    rest = seen - {MIMETYPE_MEMBER, MANIFEST_MEMBER}
    for path, expected in zip(paths, [MIMETYPE_MEMBER, MANIFEST_MEMBER, *order(rest)], strict=False):
        if path != expected:
            raise _refuse("C23", path, f"the member stands where {expected!r} has to", REBUILD)


def _check_local(data: memoryview, entry: _Entry, start: int) -> None:
    """The local header has to be the one that follows from the directory's entry, byte for byte."""
    expected = archive.local_header(Placed(entry.path, entry.size, entry.header, 0), entry.crc)
    if entry.header + len(expected) > start:
        raise _refuse("C26", entry.path, f"its header at byte {entry.header} lies outside the members' part", AGAIN)
    found = bytes(data[entry.header : entry.header + len(expected)])
    if found == expected:
        return
    if found[:4] != archive.LOCAL_SIGNATURE:
        raise _refuse("C24", entry.path, f"no local header at byte {entry.header}, where the directory has it", AGAIN)
    names = ("", "version", "flags", "method", "time", "date", "CRC-32", "stored size", "size", "name", "extra field")
    pairs = zip(names, archive.LOCAL.unpack_from(found), archive.LOCAL.unpack_from(expected), strict=True)
    field = next((name for name, local, central in pairs if local != central), "name or extra field")
    raise _refuse("C24", entry.path, f"local header and directory differ: {field}", REBUILD)


def _check_place(data: memoryview, entry: _Entry, after: int, start: int) -> Placed:
    """The member has to lie where the layout puts it, behind the member before it and a gap of zeros."""
    expected = place(entry.path, entry.size, after)
    if entry.header < after:
        raise _refuse("C25", entry.path, f"overlaps the member before it, which ends at byte {after}", REBUILD)
    if entry.header != expected.header:
        raise _refuse("C26", entry.path, f"its header is at byte {entry.header}, not at {expected.header}", REBUILD)
    if expected.end > start:
        raise _refuse("C26", entry.path, f"its {entry.size} bytes reach into the directory at byte {start}", AGAIN)
    if bytes(data[after : expected.header]).strip(b"\0"):
        raise _refuse("C27", entry.path, "hidden bytes stand in the gap before its header", REBUILD)
    return expected
