# SPDX-License-Identifier: Apache-2.0
"""Every family through every exporter, in float32 and int4, on onnxruntime and on the reference evaluator.

One test a family builds its tiny random checkpoint (`families.py`) as `genai-bundle build` would and proves each bundle
on both engines; where the chosen one generates text, every engine has to give the same tokens. The
outcome is held against its row of the table in docs/families.md, which `GENAI_UPDATE=1 pytest -m torch tests/matrix`
writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, optional
from families import FAMILIES
from matrix.beams import FAMILIES as SEARCHED
from matrix.beams import beam_differences
from matrix.table import Cell, Row, read_verdicts, write
from matrix.tokens import token_differences

pytestmark = [pytest.mark.torch, pytest.mark.openvino]
optional("torch", "torch")

from genai_bundle.builder import kinds  # noqa: E402
from genai_bundle.builder.from_checkpoint import build_checkpoint  # noqa: E402
from genai_bundle.builder.options import BuildOptions  # noqa: E402
from genai_bundle.builder.prove import prove_tests  # noqa: E402
from genai_bundle.errors import GenaiError, ProofError  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
UPDATE = bool(os.environ.get("GENAI_UPDATE"))

MINE, PARTS = os.environ.get("GENAI_PART", "1/1").split("/")
LISTED = [name for name in FAMILIES if UPDATE or name in read_verdicts(PAGE)]
CHOSEN = [name for place, name in enumerate(LISTED) if str(1 + place % int(PARTS)) in MINE.split(",")]
"""The families of the table (an update run adds new ones), or some of them: GENAI_PART=1/3 and 2,3/3 share a run out
between two processes, which take every third one and the others."""


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
    chosen: str | None = None
    for exporter in kind.exporters():
        for quantize in (None, "int4"):
            name = (exporter, quantize or "fp32")
            cells[name] = list(outcome(kind, folder, tmp_path / f"{'-'.join(name)}.genai", exporter, quantize))
            if cells[name][0].verdict != "right":
                break
        if cells[exporter, "fp32"][0].verdict == "right":
            chosen = chosen or exporter
            if not UPDATE:
                break  # the page tells what the others do, and promises what the chosen one does
    assert chosen is not None, {name: cell[0] for name, cell in cells.items()}
    assert [cell.verdict for cell in cells[chosen, "fp32"] + cells[chosen, "int4"]] == ["right"] * 4
    for form in ("fp32", "int4"):
        assert token_differences(tmp_path / f"{chosen}-{form}.genai") == []
    if family in SEARCHED:  # spec/runner.md, R29
        assert beam_differences(folder, tmp_path / f"{chosen}-fp32.genai") == []
    row = Row(chosen, cells)
    if UPDATE:
        write(PAGE, {family: row}, FAMILIES)
    assert read_verdicts(PAGE)[family] == row.verdicts, "run: GENAI_UPDATE=1 pytest -m torch tests/matrix"


def test_the_table_has_no_other_family() -> None:
    assert read_verdicts(PAGE).keys() <= FAMILIES.keys()
