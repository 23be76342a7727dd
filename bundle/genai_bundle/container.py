# SPDX-License-Identifier: Apache-2.0
"""Opens the two forms of a bundle, file and folder, and shows the members' bytes without copying them.

A container knows names, positions and bytes; what the manifest says of them is `bundle`'s business.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from .directory import read_directory
from .errors import ContainerError, UsageError
from .layout import MAX_MANIFEST, MAX_MEMBERS, MIMETYPE
from .paths import find_clash, path_problem
from .records import MANIFEST_MEMBER, MIMETYPE_MEMBER

Form = Literal["file", "folder"]


@dataclass(frozen=True, slots=True)
class Member:
    """A member's bytes: `size` of them, `offset` bytes into the bundle file (0 in the folder form)."""

    path: str
    offset: int
    size: int


class Container:
    """An open bundle whose structure has been checked: the members and their bytes.

    Bytes come as read-only memoryviews of a mapping. Views stay valid after `close`: the system unmaps a file when the
    last view of it is gone. Nobody may change the file meanwhile (the writer never does: it replaces files).
    """

    def __init__(self, path: Path, form: Form, members: Mapping[str, Member], crcs: Mapping[str, int]) -> None:
        self.path = path
        self.form = form
        self.members: Mapping[str, Member] = MappingProxyType(dict(members))
        self.crcs: Mapping[str, int] = MappingProxyType(dict(crcs))
        """CRC-32 of each member as the file's headers have it; empty in the folder form."""
        self._maps: dict[str, mmap.mmap | bytes] = {}
        self._closed = False

    def view(self, path: str) -> memoryview:
        """The bytes of a member, read-only. UsageError where there is no such member, ValueError after `close`."""
        if self._closed:
            raise ValueError("the bundle is closed")
        member = self.members.get(path)
        if member is None:
            raise UsageError("the bundle has no such member", where=path)
        whole = self._maps[path if self.form == "folder" else ""]
        return memoryview(whole)[member.offset : member.offset + member.size]

    def advise(self, path: str, advice: str) -> None:
        """Tells the system how a member is going to be read (`SEQUENTIAL`, `WILLNEED`, `DONTNEED`), if it listens."""
        member = self.members[path]
        whole = self._maps[path if self.form == "folder" else ""]
        flag = getattr(mmap, f"MADV_{advice}", None)
        if isinstance(whole, mmap.mmap) and flag is not None:
            start = member.offset // mmap.PAGESIZE * mmap.PAGESIZE
            with suppress(OSError, ValueError):
                whole.madvise(flag, start, member.offset + member.size - start)

    def close(self) -> None:
        """Gives the mappings back, at once or when the last view of them is gone."""
        self._closed = True
        maps, self._maps = self._maps, {}
        for mapped in maps.values():
            if isinstance(mapped, mmap.mmap):
                with suppress(BufferError):  # a view is alive and keeps the mapping
                    mapped.close()


def open_container(path: Path) -> Container:
    """Opens a bundle file or folder and checks everything but the members' content.

    Raises UsageError where nothing can be read at `path`, ContainerError where it is not a bundle.
    """
    try:
        container = _open_folder(path) if path.is_dir() else _open_file(path)
    except FileNotFoundError as error:
        raise UsageError("there is no such file or folder", where=str(path)) from error
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    try:
        _check_heads(container)
    except BaseException:
        container.close()
        raise
    return container


def _check_heads(container: Container) -> None:
    size = container.members[MANIFEST_MEMBER].size
    if size > MAX_MANIFEST:
        message = f"the manifest has {size} bytes, more than {MAX_MANIFEST}"
        raise ContainerError(message, where=MANIFEST_MEMBER, rule="C32", hint="Keep data in members of their own")
    content = bytes(container.view(MIMETYPE_MEMBER)[: len(MIMETYPE) + 1])
    if content != MIMETYPE:
        message = f"the media type is {content!r}, not {MIMETYPE!r}"
        raise ContainerError(message, where=MIMETYPE_MEMBER, rule="C2", hint="This is another kind of bundle")


def _open_file(path: Path) -> Container:
    mapped = _map(path)
    try:
        with memoryview(mapped) as data:
            found = read_directory(data)
    except BaseException:
        if isinstance(mapped, mmap.mmap):
            mapped.close()
        raise
    members = {item.path: Member(item.path, item.offset, item.size) for item in found.layout.members}
    crcs = dict(zip(members, found.crcs, strict=True))
    container = Container(path, "file", members, crcs)
    container._maps[""] = mapped
    return container


def _open_folder(root: Path) -> Container:
    files = list(_walk(root, ""))
    for name in (MIMETYPE_MEMBER, MANIFEST_MEMBER):
        if name not in files:
            raise ContainerError("the folder has no such file", where=name, rule="C30", hint=f"{root} is no bundle")
    if clash := find_clash(files):
        message = f"the name cannot stand beside {clash[1]!r} on every file system"
        raise ContainerError(message, where=clash[0], rule="C22", hint="Rename one")
    maps: dict[str, mmap.mmap | bytes] = {}
    try:
        for name in files:
            maps[name] = _map(root / name, follow=False)
    except BaseException:
        for mapped in maps.values():
            if isinstance(mapped, mmap.mmap):
                mapped.close()
        raise
    members = {name: Member(name, 0, len(mapped)) for name, mapped in maps.items()}
    container = Container(root, "folder", members, {})
    container._maps = maps
    return container


def _walk(root: Path, prefix: str, count: int = 0) -> Iterator[str]:
    """Yields the member paths of the folder's files. Never follows a link, never opens anything."""
    empty = True
    for item in sorted(os.scandir(root / prefix), key=lambda item: item.name):
        empty = False
        path = f"{prefix}{item.name}"
        shown = ascii(path)  # may hold control characters or half a surrogate pair
        if problem := path_problem(path):
            raise ContainerError(f"the name {problem}", where=shown, rule="C20", hint="Rename or remove the file")
        if item.is_symlink():
            hint = "Copy the files themselves, for example with `cp -rL`"
            raise ContainerError("a link, whose target may lie anywhere", where=shown, rule="F1", hint=hint)
        if item.is_dir(follow_symlinks=False):
            for found in _walk(root, f"{path}/", count):
                count += 1
                yield found
        elif item.is_file(follow_symlinks=False):
            count += 1
            yield path
        else:
            raise ContainerError("neither a file nor a folder", where=shown, rule="F2", hint="Remove it")
        if count > MAX_MEMBERS:
            raise ContainerError(f"more than {MAX_MEMBERS} files", where=shown, rule="C9", hint="Is this a bundle?")
    if empty and prefix:
        raise ContainerError("an empty folder, which a file could not hold", where=prefix, rule="F3", hint="Remove it")


def _map(path: Path, *, follow: bool = True) -> mmap.mmap | bytes:
    """Maps a whole file read-only; an empty one, which systems do not map, is empty bytes."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ContainerError("not a regular file", where=str(path), rule="F2", hint="A bundle is a file or folder")
        if status.st_size == 0:
            return b""
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)
