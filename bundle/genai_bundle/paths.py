# SPDX-License-Identifier: Apache-2.0
"""Members' paths that mean the same on every system, packed and unpacked."""

from __future__ import annotations

from collections.abc import Iterable

from .names import MAX_PATH, is_path


def path_problem(path: str) -> str | None:
    """Says what is wrong with a member's path, as the end of a sentence about it; None for a good one."""
    if is_path(path):
        return None
    if not 0 < len(path) <= MAX_PATH:
        return f"has {len(path)} characters, not 1 to {MAX_PATH}"
    segments = path.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        return "is absolute, leaves the bundle, or has an empty segment"
    if any(segment.startswith(".") or segment.endswith(".") for segment in segments):
        return "has a segment that begins with a dot (hidden) or ends in one (which Windows drops)"
    if any(is_path(f"_{segment}") for segment in segments if not is_path(segment)):
        return "has a segment that names a device on Windows"
    return "has other characters than A-Z a-z 0-9 . _ - and the / between segments"


def find_clash(paths: Iterable[str]) -> tuple[str, str] | None:
    """Finds two paths that cannot stand side by side where case does not count, or where one is the other's folder.

    Folders count too: `a/x` beside `A/y` are two folders on one system and one on another.
    """
    known: dict[
        str, tuple[str, bool, str]
    ] = {}  # folded prefix -> its spelling, whether it is a file, a path that has it
    for path in paths:
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            prefix, is_file = "/".join(parts[:count]), count == len(parts)
            spelling, was_file, owner = known.setdefault(prefix.lower(), (prefix, is_file, path))
            if owner != path and (is_file or was_file or spelling != prefix):
                return path, owner
    return None
