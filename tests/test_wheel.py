# SPDX-License-Identifier: Apache-2.0
"""The wheel holds both packages, the schemas and the licence, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [(ROOT / "bundle", "genai_bundle"), (ROOT / "runners" / "python", "genai_runner")]
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
    return zipfile.ZipFile(path)


def expected(information: str) -> set[str]:
    names = {f"{information}/{name}" for name in METADATA}
    for folder, package in PACKAGES:
        sources = [path for path in (folder / package).rglob("*.py") if "__pycache__" not in path.parts]
        names |= {path.relative_to(folder).as_posix() for path in sources} | {f"{package}/py.typed"}
    schemas = [path for path in (ROOT / "schema").rglob("*") if path.is_file()]
    return names | {f"genai_bundle/schema/{path.relative_to(ROOT / 'schema').as_posix()}" for path in schemas}


def test_exact_content(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    [information] = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert names == expected(information)


def test_the_schemas_are_inside(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "genai_bundle/schema/v1/manifest.schema.json" in names
    assert all(name.endswith(".json") for name in names if name.startswith("genai_bundle/schema/"))


def test_the_metadata_names_command_licence_and_python(wheel: zipfile.ZipFile) -> None:
    [information] = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "genai-bundle = genai_bundle.cli:main" in wheel.read(f"{information}/entry_points.txt").decode()
    metadata = wheel.read(f"{information}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "Apache License" in wheel.read(f"{information}/licenses/LICENSE").decode()


def test_the_runner_needs_no_torch(wheel: zipfile.ZipFile) -> None:
    [information] = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    lines = wheel.read(f"{information}/METADATA").decode().splitlines()
    plain = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert plain
    assert not [line for line in plain if "torch" in line or "transformers" in line]
