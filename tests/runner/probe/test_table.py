# SPDX-License-Identifier: Apache-2.0
"""What is remembered of an engine, and for how long; and what a probe survives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from genai_bundle.errors import UsageError
from genai_runner.backends.base import LoadOptions, find_backend
from genai_runner.backends.reference import ReferenceBackend
from genai_runner.probe import CASES, support, table

FEW = [case for case in CASES if case.operator in ("TopK", "ScatterND")]
NAMES = [case.name for case in FEW]

FRAGILE = """
import os, sys, time
from genai_runner.backends.reference import ReferenceBackend

class Fragile(ReferenceBackend):
    name = "fragile"
    version = VERSION
    def load(self, graph, model, weights, options):
        print("engines print what they like")
        if b"ScatterND" in model:
            END
        return super().load(graph, model, weights, options)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENAI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "probe"


def plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, end: str, version: str = '"1.0"') -> None:
    """Install the backend `fragile`, whose process does `end` when it is given a ScatterND."""
    folder.mkdir()
    (folder / "fragile_backend.py").write_text(FRAGILE.replace("END", end).replace("VERSION", version))
    about = folder / "fragile_backend-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile-backend\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[genai_runner.backends]\nfragile = fragile_backend:Fragile\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "fragile_backend", raising=False)


def test_a_version_is_tried_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, told = find_backend("reference"), list[tuple[int, int]]()
    first = support(backend, FEW, report=lambda *numbers: told.append(numbers))
    assert told == [(number, len(FEW)) for number in range(1, len(FEW) + 1)]
    assert list(first.verdicts) == NAMES
    [file] = cache.iterdir()
    assert json.loads(file.read_text())["version"] == first.version
    monkeypatch.setattr(table, "_in_worker", lambda *_: pytest.fail("tried again"))
    assert support(backend, FEW) == first
    monkeypatch.setattr(ReferenceBackend, "version", "0.1")
    with pytest.raises(pytest.fail.Exception, match="tried again"):
        support(backend, FEW)


@pytest.mark.parametrize("content", ["", "[]", '{"cases": 3}', '{"cases": {"TopK: different values": {"word": 1}}}'])
def test_a_file_that_is_not_ours_is_no_knowledge(cache: Path, content: str) -> None:
    backend = find_backend("reference")
    first = support(backend, FEW)
    [file] = cache.iterdir()
    file.write_text(content)
    assert support(backend, FEW) == first
    assert len(json.loads(file.read_text())["cases"]) == len(FEW)


def test_each_precision_has_its_own_table(cache: Path) -> None:
    for precision in ("exact", "fast"):
        support(find_backend("reference"), FEW, LoadOptions(precision=precision))
    assert len(list(cache.iterdir())) == 2


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GENAI_CACHE_DIR", str(tmp_path / "file"))
    assert list(support(find_backend("reference"), FEW).verdicts) == NAMES


@pytest.mark.parametrize("end", ["os._exit(11)", "os.kill(os.getpid(), 11)", "time.sleep(60)"])
def test_an_engine_that_crashes_or_hangs_takes_nobody_with_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    plugin(tmp_path / "site", monkeypatch, end)
    if "sleep" in end:
        monkeypatch.setattr(table, "PATIENCE_S", 15.0)  # within which a process starts
    found = support(find_backend("fragile"), [FEW[0], FEW[3], FEW[1]])
    words = {name: (verdict.word, verdict.detail) for name, verdict in found.verdicts.items()}
    assert words == {
        name: ("missing", "the engine crashed or hung") if "ScatterND" in name else ("right", "") for name in words
    }
    assert [word for word, _ in words.values()] == ["right", "missing", "right"]


def test_nothing_is_remembered_of_a_backend_without_a_version(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path / "site", monkeypatch, "raise ValueError('no such operator')", version="None")
    found = support(find_backend("fragile"), FEW)
    assert found.version == "unknown"
    assert found.verdicts["ScatterND"].detail == "no such operator"
    assert not list(cache.iterdir())


def test_a_device_that_is_not_here_is_no_verdict(cache: Path) -> None:
    with pytest.raises(UsageError, match="runs on the cpu"):
        support(find_backend("reference"), FEW, LoadOptions(device="moon"))
    assert not list(cache.iterdir())
