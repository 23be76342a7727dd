# SPDX-License-Identifier: Apache-2.0
"""The project's own limits: how long a file may be, and what no file may name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".py", ".md", ".toml", ".json", ".yaml", ".yml", ".txt", ".jinja", ".sh", ""}
MACHINE_PATH = re.compile(r"(?<![A-Za-z0-9_.~/-])/(?:home|root|work|Users|farm|tmp)/[A-Za-z0-9_.]")
LIMITS = {"runners/python/genai_runner/interpreter.py": 250, "schema/v1/manifest.schema.json": 600}
MAX_LINES = 350


def files() -> list[Path]:
    """What belongs to the project: tracked files and new ones that git does not ignore; all but caches without git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = listed.stdout.decode().split("\0")
        return [path for path in (ROOT / name for name in names if name) if path.is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not {".git", "__pycache__"} & set(path.parts)]


FILES = files()


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_python_file_is_too_long_to_read() -> None:
    sources = [path for path in FILES if path.suffix == ".py"]
    assert len(sources) > 30
    long = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    assert not {name: count for name, count in long.items() if count > MAX_LINES}


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_what_is_meant_to_be_small_is_small(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= LIMITS[name]


def test_no_path_of_one_machine() -> None:
    found = []
    for path in FILES:
        if path.suffix not in TEXT or path.stat().st_size > 1_000_000:
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{relative(path)}:{number}: {line.strip()}"
            for number, line in enumerate(lines, 1)
            if MACHINE_PATH.search(line)
        ]
    assert not found


def test_every_python_file_names_its_licence() -> None:
    sources = [path for path in FILES if path.suffix == ".py"]
    assert not [
        relative(path) for path in sources if "SPDX-License-Identifier: Apache-2.0" not in path.read_text("utf-8")[:200]
    ]
