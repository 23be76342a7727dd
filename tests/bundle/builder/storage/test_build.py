# SPDX-License-Identifier: Apache-2.0
"""Whole builds of a tiny model with weights in each form: proved, run on two engines, smaller, the same each time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer

pytestmark = pytest.mark.torch

from genai_bundle.builder.checkpoint import read_checkpoint  # noqa: E402
from genai_bundle.builder.exporters import Export  # noqa: E402
from genai_bundle.builder.from_checkpoint import build_checkpoint  # noqa: E402
from genai_bundle.builder.options import BuildOptions  # noqa: E402
from genai_bundle.builder.prove import prove_tests  # noqa: E402
from genai_bundle.builder.report import Report  # noqa: E402
from genai_bundle.bundle import open_bundle  # noqa: E402
from genai_bundle.errors import ProofError, UsageError  # noqa: E402
from genai_bundle.sanitize import sanitize  # noqa: E402
from genai_runner import load  # noqa: E402
from genai_runner.verify import run_tests  # noqa: E402


@pytest.fixture(autouse=True)
def export_once(tiny_export: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of this file are not about exporting, which takes seconds."""
    from genai_bundle.builder.exporters import transformers as exporter

    def copy(_: Any) -> Any:
        graphs = {name: model.clone() for name, model in tiny_export.graphs.items()}
        return Export(graphs, tiny_export.state, tiny_export.exporter, tiny_export.version)

    monkeypatch.setattr(exporter, "export_decoder", copy)


def source(path: Path) -> dict[str, Any]:
    with open_bundle(path) as bundle:
        found: dict[str, Any] = json.loads(bundle.read("manifest.json"))["source"]
        return found


def operators(path: Path, member: str) -> Counter[str]:
    with open_bundle(path) as bundle:
        return Counter(node.op_type for node in onnx.load_from_string(bytes(bundle.read(member))).graph.node)


@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_quantised(tiny: Path, tmp_path: Path, form: str, symmetric: bool) -> None:
    """The build's own proof compares with the model that has the dequantised weights, at the usual tolerance."""
    told: list[str] = []
    target = tmp_path / "small.genai"
    options = BuildOptions(quantize=form, symmetric=symmetric)
    build_checkpoint(tiny, target, options, told.append)
    assert any(line.startswith("proved, largest difference: portable ") for line in told)
    assert [path.name for path in tmp_path.iterdir()] == ["small.genai"]
    kind = "symmetric blocks" if symmetric else "blocks"
    assert source(target)["weights"] == {
        "stored": {f"{form} in {kind} of 16": 2, f"{form} in {kind} of 32": 13},  # rows of 48 divide by 16 only
        "left": [],
    }
    tuned, portable = operators(target, "decoder.ort-cpu.onnx"), operators(target, "decoder.onnx")
    joined = 2 if form == "int8" else 0  # gate and up of two layers; the others are too small to lie in a shard
    assert (tuned["MatMulNBits"], tuned["GatherBlockQuantized"], tuned["DequantizeLinear"]) == (15 - joined, 1, 0)
    assert tuned["Split"] == joined
    assert (portable["DequantizeLinear"], portable["MatMul"]) == (15, 15)
    assert prove_tests(target, "reference") == ["portable"]


def test_the_bytes_are_shared_and_repeat(tiny: Path, tmp_path: Path) -> None:
    targets = [tmp_path / "one.genai", tmp_path / "other.genai"]
    for target in targets:
        build_checkpoint(tiny, target, BuildOptions(quantize="int8", details={"name": "same"}))
    assert targets[0].read_bytes() == targets[1].read_bytes()
    with open_bundle(targets[0]) as bundle:
        shards = {path: entry.size for path, entry in bundle.manifest.files.items() if path.startswith("weights/")}
        places = []
        for member in ("decoder.onnx", "decoder.ort-cpu.onnx"):
            model = sanitize(bundle.read(member), file=member, members=shards)
            entries = [{item.key: item.value for item in tensor.external_data} for tensor in model.graph.initializer]
            places.append([(int(entry["offset"]), int(entry["length"])) for entry in entries if entry])
        own, shared = ([{offset for offset, _ in some}, {offset + size for offset, size in some}] for some in places)
        assert shared[0] <= own[0]  # whole tensors, or several that lie side by side
        assert shared[1] <= own[1]
        assert sum(shards.values()) < 260 * 32 + 2 * (32 * 32 * 3 + 3 * 32 * 48) + 10_000


def test_what_it_changes_is_measured(tiny: Path, tmp_path: Path) -> None:
    """Against transformers' own loss on the same windows of text."""
    import torch
    from transformers import AutoModelForCausalLM

    text = "The quick brown fox jumps over the lazy dog; " * 8
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    report = Report()
    options = BuildOptions(quantize="int4", perplexity=tmp_path / "text.txt")
    build_checkpoint(tiny, tmp_path / "x.genai", options, report)
    assert 0 < float(report.figures["largest change of a golden logit"]) < 5
    kept, _, count = report.figures["greedy tokens that stay"].partition(" of ")
    assert 0 < int(kept) < int(count)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = read_checkpoint(tiny).text.tokenizer
    tokens = Tokenizer.from_str(ids.decode()).encode(text).ids
    losses, weights = [], []
    for window in (tokens[:128], tokens[128:256], tokens[256:]):
        losses.append(model(torch.tensor([window]), labels=torch.tensor([window])).loss.item() * (len(window) - 1))
        weights.append(len(window) - 1)
    figure = report.figures["perplexity"]
    assert float(figure.split()[0]) == pytest.approx(np.exp(sum(losses) / sum(weights)), rel=1e-3)
    assert f"%), {sum(weights)} tokens" in figure


def test_a_perplexity_needs_another_form_and_a_text(tiny: Path, tmp_path: Path) -> None:
    for options, message in (
        (BuildOptions(perplexity=tmp_path / "absent"), "--perplexity: measures what another form of weights changes"),
        (BuildOptions(quantize="int8", perplexity=tmp_path / "absent"), "absent: cannot be read as text"),
    ):
        with pytest.raises(UsageError, match=message):
            build_checkpoint(tiny, tmp_path / "x.genai", options)


@pytest.mark.parametrize("form", ["fp16", "bf16"])
def test_other_float_types(tiny: Path, tmp_path: Path, form: str) -> None:
    target = tmp_path / "half.genai"
    build_checkpoint(tiny, target, BuildOptions(quantize=form, exclude=["*.layers.1.*"]))
    assert source(target)["weights"]["stored"] == {form: 8, "fp32": 7}
    for member in ("decoder.onnx", "decoder.ort-cpu.onnx"):
        assert operators(target, member)["Cast"] >= 8
    assert prove_tests(target, "reference") == ["portable"]


def test_overrides(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "mixed.genai"
    overrides = [("*.down_proj.weight", "int8"), ("model.layers.1.mlp.down_proj.weight", "fp16")]
    build_checkpoint(tiny, target, BuildOptions(quantize="int4", overrides=overrides, exclude=["*embed*"]))
    assert source(target)["weights"]["stored"] == {
        "fp16": 1,
        "fp32": 1,
        "int4 in blocks of 32": 12,
        "int8 in blocks of 16": 1,
    }


def test_a_wrong_zero_point_is_not_the_price_of_quantisation(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genai_bundle.builder.storage.packed import Packed

    right = Packed.packed_zeros

    def wrong(packed: Packed) -> Any:
        zeros = right(packed).numpy().copy()
        if packed.name.endswith("layers.1.mlp.up_proj.weight"):
            zeros[3, 0] ^= 1
        return ir.Tensor(zeros, name=f"{packed.name}.zeros.packed")

    monkeypatch.setattr(Packed, "packed_zeros", wrong)
    with pytest.raises(ProofError, match=r"variant 'ort-cpu', logits: prefill and cached steps: differs"):
        build_checkpoint(tiny, tmp_path / "wrong.genai", BuildOptions(quantize="int4", exporter="transformers"))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_without_a_variant_gets_one_for_its_blocks(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genai_bundle.builder.variants import ort_gqa

    monkeypatch.setattr(ort_gqa, "make_variant", lambda _: (None, "no pattern"))
    target = tmp_path / "plain.genai"
    build_checkpoint(tiny, target, BuildOptions(quantize="int4"))
    tuned = operators(target, "decoder.ort-cpu.onnx")
    assert (tuned["MatMulNBits"], tuned["Attention"], tuned["GroupQueryAttention"]) == (15, 2, 0)


def test_what_means_nothing_is_refused(tiny: Path, tmp_path: Path) -> None:
    for options, message in (
        (BuildOptions(quantize="int3"), "cannot be stored as 'int3'"),
        (BuildOptions(quantize="int4", exclude=["nothing*"]), "no weight matches the pattern"),
        (BuildOptions(quantize="int4", exclude=["*"]), "no weight that can be stored as int4"),
    ):
        with pytest.raises(UsageError, match=message):
            build_checkpoint(tiny, tmp_path / "x.genai", options)
    assert list(tmp_path.iterdir()) == []


def test_fast_arithmetic_is_measured_and_has_a_recorded_bound(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, report = tmp_path / "small.genai", Report()
    build_checkpoint(tiny, target, BuildOptions(quantize="int4"), report)
    assert "a score differs by" in report.figures["fast arithmetic, ort-cpu"]
    with load(target) as pipe:
        assert pipe.placements["decoder"].precision == "fast"
        assert all(test.fast and test.fast > 0 for test in pipe.manifest.tests)
        assert all(result.passed for result in run_tests(pipe))
    monkeypatch.setattr("genai_bundle.builder.golden.fast_bound", lambda _: 1e-9)
    build_checkpoint(tiny, tmp_path / "other.genai", BuildOptions(quantize="int4"), report)
    assert report.figures["fast arithmetic, ort-cpu"].endswith("run it with --precision exact")
