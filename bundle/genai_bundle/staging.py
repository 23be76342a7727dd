# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear under their name only when they are complete and on disk."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import GenaiError, UsageError
from .records import MANIFEST_MEMBER, MIMETYPE_MEMBER

Hook = Callable[[Path], None]


@contextmanager
def staged_file(target: Path, overwrite: bool, before_commit: Hook | None) -> Iterator[BinaryIO]:
    """A new file, open for writing, that becomes `target` when the block ends and vanishes when it raises."""
    _check_target(target, overwrite, target.is_dir(), "a folder")
    part = _part(target)
    try:
        with _telling(target), created(part) as file:
            yield file
        if before_commit is not None:
            before_commit(part)
        _check_target(target, overwrite, target.is_dir(), "a folder")
        with _telling(target):
            _take_name(part, target, overwrite)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


@contextmanager
def staged_folder(
    target: Path,
    overwrite: bool,
    before_commit: Hook | None,
    *,
    marks: Sequence[str] = (MIMETYPE_MEMBER, MANIFEST_MEMBER),
    what: str = "no bundle folder",
) -> Iterator[Path]:
    """A new folder that becomes `target` when the block ends and vanishes when it raises.

    marks: the files that show a folder to be one that may be replaced. what: says that it is not.

    A folder cannot be replaced in one step: the old one is moved aside first, and comes back if the new one cannot
    take its place.
    """
    _check_target(target, overwrite, _foreign(target, marks), what)
    part, old = _part(target), _part(target)
    try:
        with _telling(target):
            part.mkdir()
            yield part
        for folder, _, _ in os.walk(part):
            _sync_folder(Path(folder))
        if before_commit is not None:
            before_commit(part)
        _check_target(target, overwrite, _foreign(target, marks), what)
        with _telling(target):
            if target.exists():
                target.rename(old)
            part.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(part, ignore_errors=True)
        raise
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def created(path: Path) -> Iterator[BinaryIO]:
    """A new file with the folders that lead to it; its bytes are on disk when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _part(target: Path) -> Path:
    """A name beside the target, so that renaming stays within one file system."""
    return target.parent / f".{target.name}.{secrets.token_hex(6)}.part"


def _foreign(target: Path, marks: Sequence[str]) -> bool:
    """The target is something that must not be replaced: a file, or a folder without the marks that holds anything."""
    if not target.is_dir() or target.is_symlink():
        return os.path.lexists(target)
    marked = all((target / name).is_file() for name in marks)
    return not marked and any(target.iterdir())


def _check_target(target: Path, overwrite: bool, foreign: bool, what: str) -> None:
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}", where=str(target), hint="Make it first")
    if not overwrite and os.path.lexists(target):
        raise UsageError("exists already", where=str(target), hint="Choose another name, or ask to overwrite it")
    if foreign:
        raise UsageError(f"is {what}, and is not replaced", where=str(target), hint="Choose another name")


def _take_name(part: Path, target: Path, overwrite: bool) -> None:
    """Gives the finished file its name. Without `overwrite` a file that came up meanwhile is not replaced."""
    if overwrite:
        part.replace(target)
        return
    if os.name == "nt":
        part.rename(target)  # which refuses an existing name by itself
        return
    try:
        target.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links; the check just before has to do
        part.replace(target)
        return
    part.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a new name survive a power cut, where the system lets a folder be synced (Windows does not)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _telling(target: Path) -> Iterator[None]:
    """Turns the system's refusals into errors that say what to do."""
    try:
        yield
    except FileExistsError as error:
        raise UsageError("exists already", where=str(target), hint="Somebody wrote it meanwhile") from error
    except PermissionError as error:
        advice = (
            f"choose a folder that you may write to instead of {target.parent}, and close programs that use the file"
        )
        raise UsageError("cannot be written: permission denied", where=str(target), hint=advice) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        hint = f"Free some space on the disk of {target.parent}" if full else None
        raise GenaiError(f"cannot be written: {error.strerror or error}", where=str(target), hint=hint) from error
