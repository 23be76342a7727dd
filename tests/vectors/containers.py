# SPDX-License-Identifier: Apache-2.0
"""Vectors of the container: a small valid bundle and each way in which its bytes can lie (rules C* and I*)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import onnx.parser

from .packing import Changes, in_order, manifest_bytes, pack
from .vector import Vector, file_form, folder_form, packed, unpacked

GRAPH = "neg.onnx"
NOTES = "docs/notes.txt"
SHARD = "weights/neg-00.bin"
MODEL = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 23]> neg (float[N] x) => (float[N] y) { y = Neg(x) }'
)
MEMBERS = {GRAPH: MODEL.SerializeToString(deterministic=True), NOTES: b"A bundle that negates.\n"}
DOCUMENT: dict[str, Any] = {
    "format": "1.0",
    "name": "negate",
    "graphs": {"neg": {"file": GRAPH}},
    "inputs": {"x": {"type": "f32", "dims": ["N"]}},
    "outputs": {"y": {"type": "f32", "dims": ["N"]}},
    "steps": [{"run": "neg", "in": {"x": "x"}, "out": {"y": "y"}}, {"emit": {"y": "y"}}],
}
MANIFEST = manifest_bytes(DOCUMENT, MEMBERS)
ORDERED = in_order(MANIFEST, MEMBERS)
GOOD = pack(ORDERED)
SIGNED = [*ORDERED, ("model.sig", b"{}")]
WITH_SHARD = {**MEMBERS, SHARD: bytes(range(256)) * 3}


def valid() -> Iterator[Vector]:
    """Bundles that a reader accepts."""
    yield Vector("file", "The file form", file_form(GOOD))
    yield Vector("folder", "The folder form of the same bundle", folder_form(MANIFEST, MEMBERS))
    yield Vector("file-shard", "A shard at byte 65536 of the file", packed(DOCUMENT, WITH_SHARD))
    yield Vector("folder-shard", "The folder form of a bundle with a shard", unpacked(DOCUMENT, WITH_SHARD))
    yield Vector("empty-member", "Members without any bytes", packed(DOCUMENT, {**MEMBERS, "docs/a": b"", NOTES: b""}))
    yield Vector("empty-shard", "An empty shard has no chunks", unpacked(DOCUMENT, {**MEMBERS, SHARD: b""}))
    exact = {**MEMBERS, "docs/a": bytes(21), "docs/b": bytes(64)}
    yield Vector("no-gap", "A header that fills the room before its data exactly", packed(DOCUMENT, exact))
    yield Vector("signed", "A signature, which the manifest does not list", file_form(pack(SIGNED)))
    yield Vector("folder-signed", "The folder form of it", folder_form(MANIFEST, {**MEMBERS, "model.sig": b"{}"}))
    longest = "docs/" + "/".join(["x" * 48] * 3) + "/" + "y" * 48
    yield Vector("long-path", "A path of 200 characters", packed(DOCUMENT, {**MEMBERS, longest: b"here\n"}))
    order = {**MEMBERS, "docs/B": b"1", "docs/a": b"2", "docs/_": b"3"}
    yield Vector("order", "Paths are sorted by their bytes: B before _ before a", packed(DOCUMENT, order))


def invalid() -> Iterator[Vector]:
    """Bundles that a reader refuses, each by one rule."""
    yield from _ends()
    yield from _entries()
    yield from _names()
    yield from _places()
    yield from _against_manifest()
    yield from _folders()
    yield from _digests()


def _raw(name: str, rule: str, title: str, data: bytes, schema: str = "valid") -> Vector:
    return Vector(name, title, file_form(data), rule, schema=schema)


def _told(name: str, rule: str, title: str, /, **change: Any) -> Vector:
    """The good bundle with something else in the headers of the notes; `local_` and `central_` are prefixes."""
    told = {key.replace("_", ".", 1): value for key, value in change.items()}
    return _raw(name, rule, title, pack(ORDERED, {NOTES: told}))


def _ends() -> Iterator[Vector]:
    yield _raw("empty-file", "C1", "A file without any bytes", b"", "absent")
    yield _raw("other-file", "C1", "A text, not an archive", b"This is not a bundle.\n" * 8, "absent")
    yield _raw("prefix", "C1", "A script before the archive", b"#!/bin/sh\nexec true\n" + GOOD)
    first = pack([ORDERED[1], ORDERED[0], *ORDERED[2:]])
    yield _raw("mimetype-second", "C1", "The archive begins with manifest.json", first)
    other = b"application/vnd.other-bundle+zip"
    yield _raw("media-type", "C2", "The media type of something else", pack([("mimetype", other), *ORDERED[1:]]))
    line = [("mimetype", ORDERED[0][1] + b"\n"), *ORDERED[1:]]
    yield _raw("media-type-line", "C2", "A line end behind the media type", pack(line))
    yield _raw("truncated", "C3", "The last byte is missing", GOOD[:-1])
    yield _raw("half", "C3", "The second half is missing", GOOD[: len(GOOD) // 2], "absent")
    yield _raw("suffix", "C4", "Bytes behind the end of the archive", GOOD + b"more")
    yield _raw("comment", "C5", "An archive comment", pack(ORDERED, comment=b"hello"))
    yield _raw("split", "C6", "The end record says that there are more disks", pack(ORDERED, end={"disk": 1}))
    yield _raw("two-counts", "C6", "The two counts of entries differ", pack(ORDERED, end={"here": 3}))
    yield _raw(
        "zip64-missing", "C7", "Points to a ZIP64 record that is missing", pack(ORDERED, end={"start": 0xFFFFFFFF})
    )
    yield _raw("zip64-needless", "C7", "ZIP64 records for a directory that needs none", _with_end64())
    yield _raw(
        "count-low", "C8", "One entry more than the end record counts", pack(ORDERED, end={"here": 3, "count": 3})
    )
    yield _raw(
        "count-high", "C8", "One entry less than the end record counts", pack(ORDERED, end={"here": 5, "count": 5})
    )
    size = GOOD.rindex(b"PK\5\6") - _end_start()
    yield _raw("directory-size", "C8", "The directory is said to be shorter", pack(ORDERED, end={"size": size - 46}))
    yield _raw("directory-entry", "C8", "An entry without its signature", GOOD.replace(b"PK\1\2", b"PK\1\3", 1))
    yield _raw("directory-gap", "C8", "Bytes between directory and end record", GOOD[:-22] + bytes(4) + GOOD[-22:])
    yield _raw(
        "count-huge", "C9", "More members than a bundle may have", pack(ORDERED, end={"here": 65535, "count": 65535})
    )


def _end_start() -> int:
    return int.from_bytes(GOOD[-6:-2], "little")


def _with_end64() -> bytes:
    start, stop = _end_start(), len(GOOD) - 22
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 4, 4, stop - start, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, stop, 1)
    return GOOD[:-22] + end64 + locator + GOOD[-22:-6] + b"\xff" * 4 + GOOD[-2:]


def _entries() -> Iterator[Vector]:
    yield _told("deflated", "C10", "A member says that it is compressed", method=8)
    yield _told("encrypted", "C11", "A member says that it is encrypted", flags=1)
    yield _told("descriptor", "C12", "A member's size stands behind it", flags=8)
    yield _told("flag-utf8", "C13", "The flag for UTF-8 names", flags=0x800)
    yield _told("version", "C14", "Another version needed to extract", needed=10)
    yield _told("made-by", "C14", "Made on Unix, by its own account", central_made=0x314)
    yield _told("time", "C15", "A date of its own", time=0x6000, date=0x5B75)
    yield _told("stored-size", "C16", "The stored size is not the size", stored=7)
    yield _told("extra-time", "C17", "An extra field with a time", extra=struct.pack("<2HBI", 0x5455, 5, 1, 0))
    zip64 = struct.pack("<2H2Q", 1, 16, len(MEMBERS[NOTES]), len(MEMBERS[NOTES]))
    yield _told("extra-zip64", "C17", "A ZIP64 field for a size that needs none", extra=zip64)
    yield _told("size-hidden", "C17", "A size that points to a missing ZIP64 field", stored=0xFFFFFFFF, size=0xFFFFFFFF)
    yield _told("entry-comment", "C18", "A comment of an entry", central_comment=b"hidden")
    yield _told("link", "C19", "The attributes of a symbolic link", central_outer=0xA1FF << 16)
    yield _told("local-size", "C24", "The local header has another size", local_size=5)
    yield _told("local-name", "C24", "The local header has another name", local_name=b"docs/n0tes.txt")
    yield _told("local-flags", "C24", "Only the local header says that it is encrypted", local_flags=1)
    yield _told("local-crc", "C24", "The local header has another CRC-32", local_crc=0)
    yield _told(
        "local-extra", "C24", "Only the local header has an extra field", local_extra=struct.pack("<2H", 0x7777, 0)
    )
    yield _told("local-elsewhere", "C24", "The directory points to no local header", central_header=128)


def _names() -> Iterator[Vector]:
    names = {
        "name-parent": ("Leads out of the folder", "../notes.txt"),
        "name-absolute": ("An absolute path", "/etc/notes.txt"),
        "name-backslash": ("Another system's separator", "docs\\notes.txt"),
        "name-device": ("A device on Windows", "docs/nul.txt"),
        "name-unicode": ("Not ASCII, so of more than one spelling", "docs/nötes.txt"),
        "name-folder": ("An entry for a folder", "docs/"),
    }
    for name, (title, path) in names.items():
        yield _told(name, "C20", title, name=path.encode())
    twice = in_order(MANIFEST, MEMBERS)
    yield _raw("duplicate", "C21", "Two members of one name", pack([*twice[:3], twice[2], *twice[3:]]))
    for name, title, other in (
        ("name-case", "Names that differ in case only", "docs/Notes.txt"),
        ("name-case-folder", "Folders that differ in case only", "Docs/a.txt"),
        ("name-under-file", "A member whose folder is another member", "docs/notes.txt/a"),
    ):
        members = {**MEMBERS, other: b"other"}
        yield _raw(name, "C22", title, pack(in_order(manifest_bytes(DOCUMENT, members), members)))
    yield _raw("order", "C23", "Members in another order", pack([*ORDERED[:2], ORDERED[3], ORDERED[2]]))
    yield _raw("no-manifest", "C30", "There is no manifest", pack([ORDERED[0], *ORDERED[2:]]), "absent")


def _places() -> Iterator[Vector]:
    inner = pack([("mimetype", b""), (NOTES, b"inside")])
    header = inner[inner.index(b"PK\3\4", 1) : inner.index(b"inside") + 6]
    members = {"docs/a.bin": header.ljust(128, b"\0"), NOTES: b"inside", GRAPH: MEMBERS[GRAPH]}
    ordered = in_order(manifest_bytes(DOCUMENT, members), members)
    at = pack(ordered).index(header)
    yield _raw("overlap", "C25", "A member inside of another one", pack(ordered, {NOTES: {"central.header": at}}))
    yield _told("shifted", "C26", "A member 64 bytes behind its place", shift=64)
    yield _told("unaligned", "C26", "A member at an odd byte", shift=1)
    sizes = struct.pack("<2H2Q", 1, 16, 1 << 62, 1 << 62)
    wide = {"size": 0xFFFFFFFF, "stored": 0xFFFFFFFF, "needed": 45, "central_made": 45}
    yield _told("size-zip64", "C26", "A ZIP64 size of 2^62 bytes", extra=sizes, **wide)
    far = {"needed": 45, "central_made": 45, "central_header": 0xFFFFFFFF}
    yield _told(
        "header-zip64", "C26", "A ZIP64 offset of 2^62", central_extra=struct.pack("<2HQ", 1, 8, 1 << 62), **far
    )
    last: Changes = {"size": 1 << 20, "stored": 1 << 20}
    yield _raw("past-directory", "C26", "The last member reaches past the directory", pack(ORDERED, {GRAPH: last}))
    yield _told("header-outside", "C26", "A header behind the end of the file", central_header=0x7FFFFFFF)
    yield _told("gap", "C27", "Bytes hidden in the gap before a header", gap=b"!")
    yield _raw(
        "before-directory", "C28", "Bytes between the last member and the directory", pack(ORDERED, between=bytes(8))
    )
    shorter: Changes = {"size": 20, "stored": 20}
    yield _raw("shorter", "C28", "The last member is said to be shorter", pack(ORDERED, {GRAPH: shorter}))


def _against_manifest() -> Iterator[Vector]:
    early = [*SIGNED[:2], SIGNED[-1], *SIGNED[2:-1]]
    yield _raw("signature-early", "C23", "The signature stands before other members", pack(early))
    more = {**MEMBERS, "docs/more.txt": b"more"}
    yield _raw("unlisted", "C29", "A member that the manifest does not list", pack(in_order(MANIFEST, more)))
    less = {GRAPH: MEMBERS[GRAPH]}
    yield _raw("missing", "C30", "A listed member is missing", pack(in_order(MANIFEST, less)))
    longer = {**MEMBERS, NOTES: MEMBERS[NOTES] + b"!"}
    yield _raw("size", "C31", "A member of another size than listed", pack(in_order(MANIFEST, longer)))


def _folders() -> Iterator[Vector]:
    def folder(name: str, rule: str, title: str, files: dict[str, bytes], schema: str = "valid") -> Vector:
        return Vector(f"folder-{name}", title, files, rule, schema=schema)

    good = folder_form(MANIFEST, MEMBERS)
    yield folder("media-type", "C2", "A line end behind the media type", good | {"bundle/mimetype": b"text/plain\n"})
    yield folder("name", "C20", "A file whose name is no member's", good | {"bundle/docs/a b.txt": b""})
    yield folder("unlisted", "C29", "A file that is not listed", good | {"bundle/docs/more.txt": b"more"})
    yield folder("missing", "C30", "A listed file is missing", {k: v for k, v in good.items() if NOTES not in k})
    bare = {key: data for key, data in good.items() if "manifest" not in key}
    yield folder("no-manifest", "C30", "There is no manifest", bare, "absent")
    yield folder("size", "C31", "A file of another size than listed", good | {f"bundle/{NOTES}": b"short"})


def _digests() -> Iterator[Vector]:
    def wrong(name: str, rule: str, title: str, files: dict[str, bytes]) -> Vector:
        return Vector(name, title, files, rule, "integrity")

    changed = {**MEMBERS, NOTES: MEMBERS[NOTES].replace(b"negates", b"deletes")}
    yield wrong("changed", "I1", "A member with other bytes", file_form(pack(in_order(MANIFEST, changed))))
    yield wrong("folder-changed", "I1", "A file with other bytes", folder_form(MANIFEST, changed))
    whole = unpacked(DOCUMENT, WITH_SHARD)
    damaged = WITH_SHARD[SHARD].replace(b"\x80", b"\x81", 1)
    yield wrong("shard-changed", "I2", "A shard with one other bit", whole | {f"bundle/{SHARD}": damaged})
    listed = manifest_bytes(DOCUMENT, WITH_SHARD)
    at = listed.rindex(b'"sha256":"') + 10
    other = listed[:at] + (b"1" if listed[at : at + 1] == b"0" else b"0") + listed[at + 1 :]
    yield wrong(
        "shard-digest",
        "I3",
        "A shard whose chunks are right and whose digest is not",
        whole | {"bundle/manifest.json": other},
    )
    yield wrong("crc", "I4", "A CRC-32 that is not that of the data", file_form(pack(ORDERED, {NOTES: {"crc": 1}})))
