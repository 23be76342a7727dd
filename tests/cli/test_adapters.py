# SPDX-License-Identifier: Apache-2.0
"""Adapters on the command line: chosen by `run`, listed by `inspect`, proved by `verify`, asked for by `build`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.samples import command
from runner.tiny import bundle
from vectors.adapters import ADAPTER_MEMBERS, ADAPTERS


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives its two columns as they are, exchanged (`swap-2.0`), or the first one twice (`first`)."""
    return bundle(tmp_path_factory.mktemp("adapters") / "x.genai", {}, ADAPTERS, **ADAPTER_MEMBERS)


@pytest.mark.parametrize(("adapter", "numbers"), [(None, "3.0, 4.0"), ("swap-2.0", "4.0, 3.0"), ("first", "6.0, 4.0")])
def test_run_takes_the_adapter_that_is_named(adapter: str | None, numbers: str, columns: Path) -> None:
    chosen = [] if adapter is None else ["--adapter", adapter]
    done = command("run", columns, "--input", "x=[[3, 4]]", *chosen)
    assert (done.code, done.out) == (0, f"y: float32[1, 2] [[{numbers}]]\n")


def test_run_names_the_adapters_that_there_are(columns: Path) -> None:
    done = command("run", columns, "--input", "x=[[3, 4]]", "--adapter", "swap")
    assert (done.code, done.err) == (2, "error: the bundle has no adapter 'swap'. It has first, swap-2.0\n")


def test_inspect_lists_them(columns: Path) -> None:
    facts = json.loads(command("inspect", columns, "--json").out)["adapters"]
    assert facts["first"] == {"graphs": {"scale": "adapter-first.onnx"}, "tensors": 2, "size": 16}
    assert facts["swap-2.0"]["description"] == "exchanges the columns"
    shown = command("inspect", columns).out
    assert "swap-2.0  [scale]  2 tensors, 32 B  exchanges the columns" in shown


def test_verify_runs_the_vectors_of_each(columns: Path) -> None:
    report = json.loads(command("verify", columns, "--json").out)
    assert report["ok"]
    assert len([check for check in report["checks"] if check["check"].startswith("tests[")]) == 3


@pytest.mark.parametrize("given", [["pirate"], ["=folder"], ["pirate="], ["a=x", "a=y"]])
def test_build_wants_a_name_and_a_folder(given: list[str], tmp_path: Path) -> None:
    options = [part for text in given for part in ("--adapter", text)]
    done = command("build", tmp_path, "-o", tmp_path / "x.genai", *options)
    assert done.code == 2
    assert "--adapter: " in done.err
    assert "Such as --adapter pirate=adapters/pirate" in done.err
