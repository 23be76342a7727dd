# SPDX-License-Identifier: Apache-2.0
"""A second writer of bundle files, for tests: it shares no code with `genai_bundle`, and can be told to lie.

Vectors come from here, so that a mistake which reader and writer of the package share does not pass for the format.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785

MIMETYPE = b"application/vnd.genai-bundle+zip"
CHUNK = 4 << 20

Changes = Mapping[str, Any]
"""What to write instead of the truth about one member.

Keys: `needed flags method time date crc stored size name extra` in both headers, or in one with `local.` or `central.`
before the key; `central.` also with `made comment disk inner outer header`; `gap`, the bytes before the local header
instead of zeros; `shift`, how many bytes the member lies behind its place.
"""


def digests(path: str, data: bytes) -> dict[str, Any]:
    """A member's entry in the manifest's `files`."""
    entry: dict[str, Any] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if path.startswith("weights/"):
        pieces = (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
        entry["chunks"] = [hashlib.sha256(piece).hexdigest() for piece in pieces]
    return entry


def manifest_bytes(document: Mapping[str, Any], members: Mapping[str, bytes]) -> bytes:
    """The canonical manifest, with `files` computed from the members unless the document has it."""
    files = {path: digests(path, data) for path, data in members.items()}
    return rfc8785.dumps({"files": files, **document})


def in_order(manifest: bytes, members: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    """All members as the file holds them."""
    paths = sorted(members, key=lambda path: (path.startswith("weights/"), path))
    return [("mimetype", MIMETYPE), ("manifest.json", manifest), *((path, members[path]) for path in paths)]


def pack(
    members: Sequence[tuple[str, bytes]],
    change: Mapping[str, Changes] | None = None,
    *,
    between: bytes = b"",
    end: Mapping[str, int] | None = None,
    comment: bytes = b"",
) -> bytes:
    """A bundle file with the members in the order given. `between`: bytes before the directory; `end`: its fields."""
    body, entries = bytearray(), []
    for path, data in members:
        told = (change or {}).get(path, {})
        local, central = _fields(path, data, told, "local"), _fields(path, data, told, "central")
        raw = _local(local)
        step = 1 if path == "mimetype" else 65536 if path.startswith("weights/") else 64
        begin = -(-(len(body) + len(raw)) // step) * step - len(raw) + told.get("shift", 0)
        body += told.get("gap", b"").rjust(begin - len(body), b"\0")
        entries.append(_central(central, told.get("central.header", begin)))
        body += raw + data
    body += between
    start, directory = len(body), b"".join(entries)
    count = len(entries)
    fields = {"disk": 0, "first": 0, "here": count, "count": count, "size": len(directory), "start": start}
    fields |= {"comment": len(comment)} | dict(end or {})
    return bytes(body) + directory + struct.pack("<4s4H2IH", b"PK\5\6", *fields.values()) + comment


def _fields(path: str, data: bytes, told: Changes, place: str) -> dict[str, Any]:
    """The truth about a member, then what was told for both headers, then what was told for this one."""
    truth: dict[str, Any] = {"name": path.encode(), "needed": 20, "flags": 0, "method": 0, "time": 0, "date": 33}
    truth |= {"crc": zlib.crc32(data), "stored": len(data), "size": len(data), "extra": b"", "made": 20}
    truth |= {"comment": b"", "disk": 0, "inner": 0, "outer": 0}
    for key, value in told.items():
        head, _, field = key.rpartition(".")
        if head in ("", place) and field in truth:
            truth[field] = value
    return truth


def _common(fields: Mapping[str, Any]) -> list[Any]:
    numbers = [fields[key] for key in ("needed", "flags", "method", "time", "date", "crc", "stored", "size")]
    return [*numbers, len(fields["name"]), len(fields["extra"])]


def _local(fields: Mapping[str, Any]) -> bytes:
    return struct.pack("<4s5H3I2H", b"PK\3\4", *_common(fields)) + bytes(fields["name"] + fields["extra"])


def _central(fields: Mapping[str, Any], header: int) -> bytes:
    tail = (len(fields["comment"]), fields["disk"], fields["inner"], fields["outer"], header)
    head = struct.pack("<4s6H3I5H2I", b"PK\1\2", fields["made"], *_common(fields), *tail)
    return head + bytes(fields["name"] + fields["extra"] + fields["comment"])
