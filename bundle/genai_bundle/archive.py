# SPDX-License-Identifier: Apache-2.0
"""The ZIP records of a bundle file: one way to write each, so reading is comparing.

Sources: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (ends),
4.5.3 (ZIP64). The profile fixes what APPNOTE leaves open: stored, no flags, no data descriptor, no comment, one
timestamp. Bundles are equal byte for byte when their members are, and no reader can be led to another view of a file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from .layout import Layout, Placed

LOCAL = struct.Struct("<4s5H3I2H")
"""Signature, version needed, flags, method, time, date, CRC-32, stored size, size, length of name, of extra field."""

CENTRAL = struct.Struct("<4s6H3I5H2I")
"""Signature, made by, needed, flags, method, time, date, CRC-32, stored size, size, lengths of name, extra field and
comment, disk, internal attributes, external attributes, offset of the local header."""

END = struct.Struct("<4s4H2IH")
"""Signature, this disk, directory's disk, entries here, entries, directory size, directory offset, comment length."""

END64 = struct.Struct("<4sQ2H2I4Q")
"""Signature, size of the rest, made by, needed, this disk, directory's disk, entries here, entries, size, offset."""

LOCATOR = struct.Struct("<4sIQI")
"""Signature, disk of the ZIP64 end record, its offset, number of disks."""

LOCAL_SIGNATURE = b"PK\x03\x04"
CENTRAL_SIGNATURE = b"PK\x01\x02"
END_SIGNATURE = b"PK\x05\x06"
END64_SIGNATURE = b"PK\x06\x06"
LOCATOR_SIGNATURE = b"PK\x06\x07"

VERSION = 20
VERSION_ZIP64 = 45
TIME = 0
DATE = 0x0021  # 1980-01-01, the first day that the format can say: no date of a build reaches the bytes
WIDE = 0xFFFFFFFF  # "see the ZIP64 field"


def crc32(data: bytes | memoryview) -> int:
    """CRC-32 as ZIP has it. The reader's trust rests on SHA-256; stock tools check this one."""
    return zlib.crc32(data)


def version(member: Placed) -> int:
    """Version needed to extract: 4.5 for an entry with a ZIP64 field, else 2.0."""
    return VERSION_ZIP64 if member.zip64_size or member.zip64_header else VERSION


def local_header(member: Placed, crc: int) -> bytes:
    """The local header; a member of 2^32-1 bytes or more says its size in a ZIP64 extra field."""
    narrow = WIDE if member.zip64_size else member.size
    extra = struct.pack("<2H2Q", 1, 16, member.size, member.size) if member.zip64_size else b""
    name = member.path.encode("ascii")
    fixed = (LOCAL_SIGNATURE, version(member), 0, 0, TIME, DATE, crc, narrow, narrow, len(name), len(extra))
    return LOCAL.pack(*fixed) + name + extra


def central_extra(member: Placed) -> bytes:
    """The ZIP64 extra field of a directory entry: the values that the narrow fields cannot hold, and no others."""
    wide = [member.size, member.size] if member.zip64_size else []
    wide += [member.header] if member.zip64_header else []
    return struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""


def central_header(member: Placed, crc: int) -> bytes:
    """The entry of the central directory."""
    narrow = WIDE if member.zip64_size else member.size
    header = WIDE if member.zip64_header else member.header
    name, extra, needed = member.path.encode("ascii"), central_extra(member), version(member)
    fixed = (CENTRAL_SIGNATURE, needed, needed, 0, 0, TIME, DATE, crc, narrow, narrow, len(name), len(extra))
    return CENTRAL.pack(*fixed, 0, 0, 0, 0, header) + name + extra


def end_records(layout: Layout) -> bytes:
    """What follows the directory: the end record, and before it the ZIP64 pair where the directory needs one."""
    count, size, start = len(layout.members), layout.directory_size, layout.directory
    if not layout.zip64_end:
        return END.pack(END_SIGNATURE, 0, 0, count, count, size, start, 0)
    end64 = END64.pack(END64_SIGNATURE, END64.size - 12, VERSION_ZIP64, VERSION_ZIP64, 0, 0, count, count, size, start)
    locator = LOCATOR.pack(LOCATOR_SIGNATURE, 0, start + size, 1)
    return end64 + locator + END.pack(END_SIGNATURE, 0, 0, count, count, size, WIDE, 0)


def directory(layout: Layout, crcs: Sequence[int]) -> bytes:
    """The central directory and the end records: all bytes of the file from `layout.directory` on."""
    entries = (central_header(member, crc) for member, crc in zip(layout.members, crcs, strict=True))
    return b"".join(entries) + end_records(layout)
