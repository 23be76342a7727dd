# SPDX-License-Identifier: Apache-2.0
"""Writes bundles: all or nothing, the same bytes for the same members, weights streamed and never held in memory.

A bundle is written to a temporary file beside its target and takes the target's name when it is complete and on disk.
A reader that has the old file mapped keeps the old file: truncating or overwriting it in place would kill that reader
or change its weights under it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from . import archive, staging
from .canonical import dumps
from .digest import Block, Digester, bundle_id, unknown_entry
from .errors import SourceError
from .layout import MIMETYPE, is_weights, order, plan
from .manifest import parse_manifest
from .records import MANIFEST_MEMBER, MIMETYPE_MEMBER, SIGNATURE_MEMBER, FileEntry

BLOCK = 4 << 20
ZEROS = bytes(64 << 10)

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total) as the members' bytes pass; at least once for each 4 MiB."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A member that is made while it is written: `size` bytes, zero but for the segments.

    segments: (offset in bytes, function that returns the bytes to put there), ascending and disjoint. Each function
    is called once, when its turn comes, and its result is dropped before the next call.
    """

    size: int
    segments: Sequence[tuple[int, Callable[[], bytes | memoryview]]]


Source = bytes | Path | Shard
"""Where a member's bytes come from: memory, a file, or a function for each of its tensors."""


def write_bundle(
    target: str | Path,
    manifest: Mapping[str, Any],
    members: Mapping[str, Source],
    *,
    overwrite: bool = False,
    before_commit: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> str:
    """Writes the file form and returns the bundle's id, `sha256:` and the manifest's digest.

    manifest: the document without `files`, which is computed. members: every member but `mimetype` and the manifest;
    a signature, if there is one, as `model.sig`.
    before_commit: gets the finished temporary file; if it raises, nothing stays behind and the target is untouched.

    Raises UsageError where the target exists (and `overwrite` is false) or cannot be written, ManifestError where the
    manifest breaks the format, SourceError where a source is not as long as it said. On any exception, an interrupt
    included, the temporary file is removed.
    """
    sizes = {path: _size(path, source) for path, source in members.items()}
    draft = _manifest(manifest, _unknown(sizes))
    layout = plan(len(draft), sizes.items())
    report = _Report(sum(sizes.values()), progress)
    with staging.staged_file(Path(target), overwrite, before_commit) as file:
        entries: dict[str, FileEntry] = {}
        crcs: list[int] = []
        for member in layout.members:
            if member.path in (MIMETYPE_MEMBER, MANIFEST_MEMBER):
                crcs.append(0)  # written below, when the digests are known
                continue
            file.seek(member.offset)
            digester = _copy(file, member.path, members[member.path], member.size, report)
            _put(file, member.header, archive.local_header(member, digester.crc))
            entries[member.path] = digester.entry
            crcs.append(digester.crc)
        raw = _manifest(manifest, entries)
        for index, data in enumerate((MIMETYPE, raw)):
            crcs[index] = archive.crc32(data)
            _put(file, layout.members[index].header, archive.local_header(layout.members[index], crcs[index]) + data)
        _put(file, layout.directory, archive.directory(layout, crcs))
    return bundle_id(raw)


def write_folder(
    target: str | Path,
    manifest: Mapping[str, Any],
    members: Mapping[str, Source],
    *,
    overwrite: bool = False,
    before_commit: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> str:
    """Writes the folder form: the same members, the same manifest and so the same id as `write_bundle`.

    With `overwrite` an existing bundle folder is replaced; any other folder is left alone and refused.
    """
    sizes = {path: _size(path, source) for path, source in members.items()}
    _manifest(manifest, _unknown(sizes))
    report = _Report(sum(sizes.values()), progress)
    with staging.staged_folder(Path(target), overwrite, before_commit) as folder:
        entries: dict[str, FileEntry] = {}
        for path in order(members):
            with staging.created(folder / path) as file:
                entries[path] = _copy(file, path, members[path], sizes[path], report).entry
        raw = _manifest(manifest, entries)
        for name, data in ((MIMETYPE_MEMBER, MIMETYPE), (MANIFEST_MEMBER, raw)):
            with staging.created(folder / name) as file:
                file.write(data)
    return bundle_id(raw)


@dataclass(slots=True)
class _Report:
    total: int
    callback: Progress | None
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        if self.callback is not None:
            self.callback(self.done, self.total)


def _unknown(sizes: Mapping[str, int]) -> dict[str, FileEntry]:
    """Entries of the right length, for a manifest whose digests are not known yet."""
    return {path: unknown_entry(size, is_weights(path)) for path, size in sizes.items()}


def _manifest(document: Mapping[str, Any], entries: Mapping[str, FileEntry]) -> bytes:
    """The manifest's bytes with `files` filled in; parsed once, for a reader would refuse what the parser refuses."""
    if "files" in document:
        raise SourceError("the manifest given to a writer has `files`", hint="Leave it out: it is computed")
    files: dict[str, dict[str, Any]] = {}
    for path, entry in entries.items():
        if path == SIGNATURE_MEMBER:
            continue
        files[path] = {"size": entry.size, "sha256": entry.sha256}
        if entry.chunks is not None:
            files[path]["chunks"] = list(entry.chunks)
    raw = dumps({**document, "files": files})
    parse_manifest(raw)
    return raw


def _size(path: str, source: Source) -> int:
    if isinstance(source, Path):
        try:
            return source.stat().st_size
        except OSError as error:
            raise SourceError(f"cannot read {source}: {error.strerror}", where=path) from error
    return source.size if isinstance(source, Shard) else len(source)


def _copy(file: BinaryIO, path: str, source: Source, size: int, report: _Report) -> Digester:
    """Writes a member's bytes at the file's position and returns their digests."""
    digester = Digester(is_weights(path))
    for block in blocks(path, source):
        if digester.size + len(block) > size:
            break
        file.write(block)
        digester.update(block)
        report.add(len(block))
    else:
        if digester.size == size:
            return digester
    raise SourceError(f"its source does not have the {size} bytes that it had at first", where=path)


def _put(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)


def blocks(path: str, source: Source) -> Iterator[Block]:
    """A source's bytes in order, in blocks of at most 4 MiB."""
    if isinstance(source, Path):
        yield from _file_blocks(path, source)
    elif isinstance(source, Shard):
        yield from _shard_blocks(path, source)
    else:
        yield from _cut(source)


def _file_blocks(path: str, source: Path) -> Iterator[Block]:
    try:
        with source.open("rb", buffering=0) as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:
        raise SourceError(f"cannot read {source}: {error.strerror}", where=path) from error


def _shard_blocks(path: str, shard: Shard) -> Iterator[Block]:
    position = 0
    for offset, make in shard.segments:
        if offset < position:
            message = f"a segment begins at {offset}, inside the one before, which ends at {position}"
            raise SourceError(message, where=path)
        yield from _zeros(offset - position)
        data = _made(path, make)
        yield from _cut(data)
        position = offset + len(data)
    yield from _zeros(shard.size - position)


def _made(path: str, make: Callable[[], Block]) -> memoryview:
    try:
        return memoryview(make()).cast("B")
    except OSError as error:
        raise SourceError(f"cannot read a segment: {error.strerror or error}", where=path) from error


def _cut(data: bytes | memoryview) -> Iterator[Block]:
    view = memoryview(data)
    for start in range(0, len(view), BLOCK):
        yield view[start : start + BLOCK]


def _zeros(count: int) -> Iterator[Block]:
    for start in range(0, count, len(ZEROS)):
        yield memoryview(ZEROS)[: min(len(ZEROS), count - start)]
