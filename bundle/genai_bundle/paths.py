# SPDX-License-Identifier: Apache-2.0
"""Whether members' paths can stand beside each other in a folder of any system."""

from __future__ import annotations

from collections.abc import Iterable

def find_clash(paths: Iterable[str]) -> tuple[str, str] | None:
    """Finds two paths that cannot both exist where case does not count, or where one is the folder of the other."""
    spelled: dict[str, tuple[str, str]] = {}  # folded prefix -> its spelling, the path that has it
    files: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            prefix = "/".join(parts[:count])
            spelling, owner = spelled.setdefault(prefix.lower(), (prefix, path))
            if spelling != prefix or (count < len(parts) and prefix.lower() in files):
                return path, owner
        if path.lower() in files or spelled[path.lower()][1] != path:
            return path, spelled[path.lower()][1]
        files[path.lower()] = path
    return None
