# SPDX-License-Identifier: Apache-2.0
"""The cores that a process may use, read from files as containers have them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from genai_runner import cores
from genai_runner.cores import available_cores

V1 = {"proc/self/cgroup": "5:cpuset:/\n2:cpuacct,cpu:/docker/ab\n1:memory:/docker/ab\n"}
QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 8),
        # The group's own limit is wider than that of the one above.
        (
            {
                "proc/self/cgroup": "0::/outer/inner\n",
                "sys/fs/cgroup/outer/cpu.max": "200000 100000",
                "sys/fs/cgroup/outer/inner/cpu.max": "600000 100000",
            },
            2,
        ),
        # A container with the host's path: only the mount is there.
        ({"proc/self/cgroup": "0::/../host/path\n", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        (V1 | {f"sys/fs/cgroup/cpu/docker/ab/{QUOTA}": "250000", f"sys/fs/cgroup/cpu/docker/ab/{PERIOD}": "100000"}, 2),
        (V1 | {f"sys/fs/cgroup/cpu/{QUOTA}": "500000", f"sys/fs/cgroup/cpu/{PERIOD}": "100000"}, 5),
        (V1 | {f"sys/fs/cgroup/cpuacct,cpu/{QUOTA}": "500000", f"sys/fs/cgroup/cpuacct,cpu/{PERIOD}": "100000"}, 5),
        (V1 | {f"sys/fs/cgroup/cpu/{QUOTA}": "-1", f"sys/fs/cgroup/cpu/{PERIOD}": "100000"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "many\n"}, 8),
    ],
)
def test_quotas(files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_cores(tmp_path) == expected


def test_a_system_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cores.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 6)
    assert available_cores(tmp_path) == 6


def test_this_machine() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
