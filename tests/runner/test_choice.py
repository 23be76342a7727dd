# SPDX-License-Identifier: Apache-2.0
"""The automatic choice of a backend: what it takes, what it leaves out and why, and what it remembers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

import genai_runner
from cli.samples import command, doubler, talker
from genai_bundle.errors import BackendError, UsageError
from genai_runner import choice, plugins
from genai_runner.backends.base import Graph, LoadOptions
from genai_runner.backends.scripted import ScriptedBackend

HERE = "choice_engines"


class Wrong(ScriptedBackend):
    """Quick, and always zero."""

    name, version = "wrong", "1"


class Broken(ScriptedBackend):
    name, version = "broken", "1"

    def load(self, graph: str, model: bytes, weights: Mapping[str, memoryview], options: LoadOptions) -> Graph:
        raise RuntimeError("out of sorts")


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two faulty engines beside those that are installed; the folder of what is remembered."""
    import sys
    from types import SimpleNamespace

    monkeypatch.setitem(sys.modules, HERE, SimpleNamespace(Wrong=Wrong, Broken=Broken))  # type: ignore[arg-type]
    points = EntryPoints(EntryPoint(kind.name, f"{HERE}:{kind.__name__}", plugins.GROUP) for kind in (Wrong, Broken))
    monkeypatch.setattr(plugins, "entry_points", lambda **wanted: points.select(**wanted))
    monkeypatch.setenv("GENAI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "choices"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return talker(tmp_path / "talker.genai")


def test_r26_the_fastest_that_is_right_is_taken(path: Path) -> None:
    with genai_runner.load(path, "auto") as pipe:
        assert pipe("five", max_tokens=3).tokens == [6, 7, 0]
    by_name = {(one.backend, one.variant): one for one in pipe.figures}
    [best] = [one for one in pipe.figures if one.chosen]
    assert (best.backend, best.reason) == (pipe.backend_name, "")
    right = [one for one in pipe.figures if not one.reason]
    assert {("onnxruntime", "portable"), ("onnxruntime", "ort-cpu")} <= {(one.backend, one.variant) for one in right}
    assert best.cost == min(one.cost for one in right)
    assert all(one.step_s and one.prefill_s and one.load_s for one in right)
    assert "does not reproduce test 'counts', output 'tokens'" in by_name["wrong", "portable"].reason
    assert "out of sorts" in by_name["broken", "portable"].reason
    assert "only where no other" in by_name["reference", "portable"].reason


def test_the_reference_is_taken_where_nothing_else_is_right(path: Path) -> None:
    found = choice.figures(path, genai_runner.load, backends=["wrong", "reference"])
    assert choice.chosen(found).backend == "reference"


def test_it_is_measured_once(path: Path, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choice.figures(path, genai_runner.load, precision="exact")
    measured = choice._measure
    monkeypatch.setattr(choice, "_measure", lambda *_: pytest.fail("measured again"))
    assert choice.figures(path, genai_runner.load, precision="exact") == first
    monkeypatch.setattr(choice, "_measure", measured)
    for change in ({"precision": "fast"}, {"threads": 1, "precision": "exact"}):
        choice.figures(path, genai_runner.load, **change)
    assert len(list(engines.iterdir())) == 3
    monkeypatch.setattr(Wrong, "version", "2")
    choice.figures(path, genai_runner.load, precision="exact")
    assert len(list(engines.iterdir())) == 4


def test_what_is_remembered_may_be_damaged_or_impossible(
    path: Path, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice.figures(path, genai_runner.load)
    [file] = engines.iterdir()
    file.write_text(file.read_text()[:40])
    assert (
        choice.chosen(choice.figures(path, genai_runner.load)).backend
        == choice.chosen(choice.figures(path, genai_runner.load)).backend
    )
    monkeypatch.setattr(choice, "cache_folder", lambda _: None)
    assert choice.figures(path, genai_runner.load)


def test_a_bundle_that_generates_nothing_runs_its_golden_vector(tmp_path: Path) -> None:
    tests = [{"in": {"sound": [1.0]}, "out": {"louder": [2.0]}}]
    with genai_runner.load(doubler(tmp_path / "x.genai", tests=tests), "auto") as pipe:
        [best] = [one for one in pipe.figures if one.chosen]
    assert best.backend not in ("wrong", "broken", "reference")
    assert best.step_s is None
    assert best.difference == 0


def test_with_nothing_to_run_nothing_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"onnxruntime, portable: the bundle has no golden vectors"):
        genai_runner.load(doubler(tmp_path / "x.genai"), "auto")


def test_a_variant_may_be_asked_for(path: Path) -> None:
    with genai_runner.load(path, "auto", variant="ort-cpu") as pipe:
        assert pipe.placements["decoder"].variant == "ort-cpu"
    with pytest.raises(UsageError, match="variant 'fastest'"):
        genai_runner.load(path, "auto", variant="fastest")


def test_the_command_explains(path: Path) -> None:
    done = command("run", path, "--backend", "auto", "--explain")
    assert done.code == 0
    assert "the fastest right one" in done.out
    assert "decoder: decoder" in done.out
    report: Any = command("run", path, "--explain", "--json").json
    assert report["backend"] == "onnxruntime"
    assert report["graphs"]["decoder"]["precision"] == "exact"
    assert sum(one["chosen"] for one in report["figures"]) == 1
    assert command("run", path, "five", "--backend", "auto", "--max-tokens", "2").out == "six seven\n"
