# SPDX-License-Identifier: Apache-2.0
"""Every vector does what it says: valid ones open, each invalid one is refused by its rule, nothing else happens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "tests" / "vectors"
FOLDERS = sorted(path.parent for path in VECTORS.glob("v1/*/*/vector.json"))
NAMES = [folder.relative_to(VECTORS / "v1").as_posix() for folder in FOLDERS]

READ_ALL = """
import json, sys
from pathlib import Path
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import InvalidBundle

found = {}
for line in sys.stdin:
    folder = Path(line.strip())
    file = folder / "bundle.genai"
    try:
        with open_bundle(file if file.exists() else folder / "bundle") as bundle:
            opened = True
            bundle.verify()
        verdict = None
    except InvalidBundle as error:
        verdict = error.rule
    found[line.strip()] = verdict
engines = sorted({"onnxruntime", "openvino", "torch", "genai_runner"} & set(sys.modules))
print(json.dumps({"found": found, "engines": engines}))
"""
"""Reads in a process of its own, where no other test has imported an engine."""


def facts(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "vector.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def tree(folder: Path) -> dict[str, int]:
    return {path.as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the reader says of all vectors, and which modules it imported."""
    work = tmp_path_factory.mktemp("work")
    before = tree(VECTORS / "v1")
    run = subprocess.run(
        [sys.executable, "-B", "-c", READ_ALL],
        input="\n".join(map(str, FOLDERS)),
        capture_output=True,
        text=True,
        cwd=work,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert tree(VECTORS / "v1") == before, "reading changed a vector"
    assert not list(work.iterdir()), "reading wrote into the working folder"
    result = json.loads(run.stdout)
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_vector(folder: Path, read: dict[str, Any]) -> None:
    rule = facts(folder).get("rule")
    assert (rule is None) == (folder.parent.name == "valid")
    assert read["found"][str(folder)] == rule


def test_reading_imports_no_engine(read: dict[str, Any]) -> None:
    assert read["engines"] == []


def test_no_general_zip_reader_is_used() -> None:
    """Such readers repair what has to be refused."""
    sources = (ROOT / "bundle" / "genai_bundle").rglob("*.py")
    assert not [path.name for path in sources if re.search(r"^\s*(import|from) zipfile", path.read_text("utf-8"), re.M)]


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_facts_fit_their_schema(folder: Path) -> None:
    schema = json.loads((ROOT / "schema" / "v1" / "vector.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(facts(folder))


def test_there_are_enough() -> None:
    counts = Counter(folder.parent.name for folder in FOLDERS)
    assert counts["valid"] >= 12
    assert counts["invalid"] >= 60


def test_vectors_are_small() -> None:
    sizes = {path: path.stat().st_size for path in (VECTORS / "v1").rglob("*") if path.is_file()}
    large = [path for path, size in sizes.items() if size > 16_384]
    assert len(large) <= 3, large
    assert sum(sizes.values()) < 2_000_000


def test_committed_vectors_are_those_generated() -> None:
    run = subprocess.run(
        [sys.executable, str(VECTORS / "make.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
