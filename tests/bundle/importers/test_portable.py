# SPDX-License-Identifier: Apache-2.0
"""Imported graphs that need one engine, or more than a bundle may hold, become portable; others stay, and say so."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from bundle.importers import tiny
from genai_bundle.builder.build import build
from genai_bundle.builder.report import Report
from genai_bundle.bundle import open_bundle
from genai_bundle.importers.graphs import read_graph
from genai_bundle.importers.portable import with_portable
from genai_runner import load

CONFIG = {"vocab_size": tiny.WORDS, "max_position_embeddings": 64}


def ending(model: onnx.ModelProto, op_type: str, domain: str, opset: int = 17, **attributes: float) -> onnx.ModelProto:
    """The decoder with one more operator before its logits."""
    found = onnx.ModelProto.FromString(model.SerializeToString())
    del found.opset_import[:]
    found.opset_import.append(onnx.helper.make_opsetid("", opset))
    if domain:
        found.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    last = found.graph.node[-1]
    last.output[0] = "raw"
    inputs = ["raw", "raw"] if op_type == "SwiGLU" else ["raw"]
    found.graph.node.append(
        onnx.helper.make_node(op_type, inputs, ["logits"], "the.last", domain=domain, **attributes)
    )  # fmt: skip
    return found


def folder(path: Path, model: onnx.ModelProto) -> Path:
    path.mkdir()
    onnx.save(model, path / "model.onnx")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def tokens(bundle: Path, backend: str = "onnxruntime", variant: str = "auto") -> list[int]:
    with load(bundle, backend, variant=variant, threads=1) as pipeline:
        found: list[int] = pipeline(ids=[[3, 1, 4]], max_tokens=12).outputs["tokens"][0].tolist()
        return found


def test_an_operator_of_one_engine(tmp_path: Path) -> None:
    source = folder(tmp_path / "x", ending(tiny.decoder(), "QuickGelu", "com.microsoft", alpha=0.5))
    report = Report()
    build(source, tmp_path / "x.genai", progress=report)
    assert "model.onnx has a portable form: QuickGelu" in report.notes
    with open_bundle(tmp_path / "x.genai") as bundle:
        [graph] = bundle.manifest.graphs.values()
        assert bundle.manifest.requires == ()
        assert [variant.name for variant in graph.variants] == ["ort"]
        assert bundle.graph(graph.variants[0].file).opset_import[0].version == 17
        assert "portable graphs, logits of each step within 0.001" in bundle.manifest.source["proof"]["checks"]
    build(source, tmp_path / "again.genai")
    assert (tmp_path / "again.genai").read_bytes() == (tmp_path / "x.genai").read_bytes()
    expected = tokens(tmp_path / "x.genai")
    assert tokens(tmp_path / "x.genai", variant="portable") == expected
    assert tokens(tmp_path / "x.genai", "reference") == expected


def test_an_operator_that_no_bundle_may_hold(tmp_path: Path) -> None:
    """Of a set that ONNX Runtime does not take either: the reference evaluator gives the golden tokens."""
    source = folder(tmp_path / "x", ending(tiny.decoder(), "SwiGLU", "", 28, alpha=0.5))
    build(source, tmp_path / "x.genai")
    with open_bundle(tmp_path / "x.genai") as bundle:
        [graph] = bundle.manifest.graphs.values()
        assert graph.variants == ()
        assert [entry.version for entry in bundle.graph(graph.file).opset_import] == [24]
    assert tokens(tmp_path / "x.genai") == tokens(tmp_path / "x.genai", "reference")


def test_what_cannot_be_lowered_stays_and_is_named(tmp_path: Path) -> None:
    source = folder(tmp_path / "x", ending(tiny.decoder(), "ThresholdedRelu", "com.microsoft", alpha=-100.0))
    graph = read_graph("decoder", source / "model.onnx")
    notes: list[str] = []
    assert with_portable(graph, notes) is graph
    assert notes == [
        "model.onnx runs on ONNX Runtime only: ThresholdedRelu (the.last): there is no form of it in standard operators"
    ]


def test_a_form_that_differs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was lowered is compared with the source: here it is made wrong on purpose."""
    from genai_bundle.builder import lowering
    from genai_bundle.builder.lowering.rewrites import gelu

    lowering.known.cache_clear()
    monkeypatch.setattr(gelu, "rewrite", lambda node, write: [write("Neg", node.inputs[0])])
    try:
        source = folder(tmp_path / "x", ending(tiny.decoder(), "QuickGelu", "com.microsoft", alpha=0.5))
        report = Report()
        build(source, tmp_path / "x.genai", progress=report)
    finally:
        lowering.known.cache_clear()
    [line] = [note for note in report.notes if "is not used" in note]
    assert line.startswith("the portable form of ")
    with open_bundle(tmp_path / "x.genai") as bundle:
        assert bundle.manifest.requires == ("domain:com.microsoft",)
        assert not any(graph.variants for graph in bundle.manifest.graphs.values())
