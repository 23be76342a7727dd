# SPDX-License-Identifier: Apache-2.0
"""How many cores this process may use: an engine's own guess leaves half of them idle, or counts a whole host's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: CPU affinity, then its container's quota (cgroup v2 and v1), never less than 1.

    `root` is where the files of the system lie.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    """Whole cores of every quota on the way from this process's groups to their roots; the least one holds."""
    for controllers, path in _groups(root):
        if controllers == "":
            for folder in _upwards(root / "sys/fs/cgroup", path):
                yield from _cores(_words(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", controllers):  # the second name is where both controllers are mounted together
                for folder in _upwards(root / "sys/fs/cgroup" / mount, path):
                    files = (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
                    yield from _cores([word for file in files for word in _words(file)])


def _groups(root: Path) -> list[tuple[str, str]]:
    """(controllers, path) of the process's groups; controllers are empty for version 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # another system
        return []
    parts = [line.split(":", 2) for line in lines]
    return [(part[1], part[2]) for part in parts if len(part) == 3]


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The group's folder and those above it. In a container the path may be the host's: then only the mount exists."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for count in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:count])


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no such limit
        return []


def _cores(words: list[str]) -> Iterator[int]:
    """Of `[quota, period]` in microseconds, where the quota is a limit (not `max` or -1)."""
    try:
        quota, period = (int(word) for word in words)
    except ValueError:
        return
    if quota > 0 and period > 0:
        yield max(1, quota // period)
