# SPDX-License-Identifier: Apache-2.0
"""Every family through every exporter, in float32 and int4, on onnxruntime and on the reference evaluator.

One test a family builds its tiny random checkpoint (`families.py`) as `genai-bundle build` would and proves each bundle
on both engines. The last test holds the outcome against the table in docs/families.md, which
`GENAI_UPDATE=1 pytest tests/matrix` writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, optional
from families import FAMILIES
from matrix.table import Cell, Row, read_verdicts, write

pytestmark = pytest.mark.torch
optional("torch", "torch")

from genai_bundle.builder import kinds  # noqa: E402
from genai_bundle.builder.from_checkpoint import build_checkpoint  # noqa: E402
from genai_bundle.builder.options import BuildOptions  # noqa: E402
from genai_bundle.builder.prove import prove_tests  # noqa: E402
from genai_bundle.errors import GenaiError, ProofError  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
ROWS: dict[str, Row] = {}

PART, PARTS = map(int, os.environ.get("GENAI_PART", "1/1").split("/"))
LISTED = [name for name in FAMILIES if os.environ.get("GENAI_UPDATE") or name in read_verdicts(PAGE)]
CHOSEN = LISTED[PART - 1 :: PARTS]
"""The families of the table (an update run adds new ones), or every second one and so on: GENAI_PART=1/2 and 2/2 share
a run between two processes."""


@pytest.fixture
def kind_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """The kind of a checkpoint, which exports once for each exporter and remembers what the model answered last."""

    def prepare(folder: Path) -> Any:
        kind: Any = kinds.choose(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        made = kind.exporters()
        ask, exported = kind.ask, dict[str, Any]()

        def once(name: str) -> Callable[..., Any]:
            def export(*arguments: Any) -> Any:
                if name not in exported:
                    exported[name] = made[name](*arguments)
                kept = exported[name]
                graphs = {graph: model.clone() for graph, model in kept.graphs.items()}
                return type(kept)(graphs, kept.state, kept.exporter, kept.version)

            return export

        def remember(*arguments: Any, **named: Any) -> Any:
            kind.evidence = ask(*arguments, **named)
            return kind.evidence

        monkeypatch.setattr(kind, "exporters", lambda: {name: once(name) for name in made})
        monkeypatch.setattr(kind, "ask", remember)
        monkeypatch.setattr(kind, "evidence", None, raising=False)
        return kind

    return prepare


def outcome(kind: Any, folder: Path, target: Path, exporter: str, quantize: str | None) -> Iterator[Cell]:
    """One cell an engine: the proof of the build itself, then the same on the reference evaluator."""
    told: list[str] = []
    options = BuildOptions(exporter=exporter, quantize=quantize, overwrite=True)
    try:
        build_checkpoint(folder, target, options, told.append)
    except ProofError as error:
        yield Cell("wrong", error.message)
        return
    except GenaiError as error:
        yield Cell("refused", error.message)
        return
    yield Cell("right", max(kind.evidence.prove(target, "onnxruntime").values()))
    yield Cell("right", max(kind.evidence.prove(target, "reference").values()))
    assert prove_tests(target, "reference")


@pytest.mark.parametrize("family", CHOSEN)
def test_family(family: str, tmp_path: Path, kind_of: Callable[[Path], Any]) -> None:
    folder = tmp_path / family
    FAMILIES[family](folder)
    kind = kind_of(folder)
    cells: dict[tuple[str, str], list[Cell]] = {}
    for exporter in kind.exporters():
        for quantize in (None, "int4"):
            name = (exporter, quantize or "fp32")
            cells[name] = list(outcome(kind, folder, tmp_path / "x.genai", exporter, quantize))
            if cells[name][0].verdict != "right":
                break
    chosen = next((name for name in kind.exporters() if cells[name, "fp32"][0].verdict == "right"), None)
    assert chosen is not None, {name: cell[0] for name, cell in cells.items()}
    assert [cell.verdict for cell in cells[chosen, "fp32"] + cells[chosen, "int4"]] == ["right"] * 4
    ROWS[family] = Row(chosen, cells)


def test_the_table_says_what_was_seen() -> None:
    if os.environ.get("GENAI_UPDATE"):
        write(PAGE, ROWS, FAMILIES)
    known: Mapping[str, Any] = read_verdicts(PAGE)
    assert {name: row.verdicts for name, row in ROWS.items()} == {name: known.get(name) for name in ROWS}, (
        "run: GENAI_UPDATE=1 pytest tests/matrix"
    )
    assert known.keys() <= FAMILIES.keys()
