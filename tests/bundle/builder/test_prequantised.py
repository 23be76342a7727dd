# SPDX-License-Identifier: Apache-2.0
"""GPTQ and AWQ checkpoints keep their integers: packed here by the published layouts, element by element."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import optional

pytestmark = pytest.mark.torch
safetensors = optional("safetensors.numpy", "torch")

from genai_bundle.builder.checkpoint import read_checkpoint  # noqa: E402
from genai_bundle.builder.from_checkpoint import build_checkpoint  # noqa: E402
from genai_bundle.builder.lazy import graph_tensor, stored_weight  # noqa: E402
from genai_bundle.builder.options import BuildOptions  # noqa: E402
from genai_bundle.bundle import open_bundle  # noqa: E402
from genai_bundle.errors import SourceError  # noqa: E402

Array = np.ndarray[Any, Any]

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""AutoAWQ: half byte i of a word holds the column AWQ_ORDER[i]."""


def gptq(q: Array, zeros: Array, bits: int, less: int = 1) -> tuple[Array, Array]:
    """AutoGPTQ's `pack` of q[K,N] and zeros[G,N]."""
    each = 32 // bits
    words = np.zeros((len(q) // each, q.shape[1]), np.uint32)
    for k in range(len(q)):
        words[k // each] |= q[k].astype(np.uint32) << np.uint32(bits * (k % each))
    zero_words = np.zeros((len(zeros), zeros.shape[1] // each), np.uint32)
    for n in range(zeros.shape[1]):
        stated = ((zeros[:, n].astype(np.int64) - less) & ((1 << bits) - 1)).astype(np.uint32)
        zero_words[:, n // each] |= stated << np.uint32(bits * (n % each))
    return words.view(np.int32), zero_words.view(np.int32)


def awq(q: Array, zeros: Array, _: int = 4) -> tuple[Array, Array]:
    """AutoAWQ's `WQLinear_GEMM.from_linear`."""

    def words(values: Array) -> Array:
        found = np.zeros((len(values), values.shape[1] // 8), np.uint32)
        for column in range(found.shape[1]):
            for place, order in enumerate(AWQ_ORDER):
                found[:, column] |= values[:, column * 8 + order].astype(np.uint32) << np.uint32(4 * place)
        return found.view(np.int32)

    return words(q), words(zeros)


def write(tiny: Path, target: Path, method: str, *, bits: int = 4, group: int = 16, **config: Any) -> dict[str, Array]:
    """A copy of `tiny` with every projection quantised; what they stand for, [N,K], by name."""
    shutil.copytree(tiny, target)
    rng = np.random.default_rng(3)
    tensors, meant = {}, {}
    less = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
    for name, array in safetensors.load_file(tiny / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = array
            continue
        count, length = array.shape
        size = length if group == -1 else group
        q = rng.integers(0, 1 << bits, (length, count)).astype(np.uint8)
        zeros = rng.integers(1, 1 << bits, (length // size, count)).astype(np.uint8)
        scales = rng.uniform(0.005, 0.02, zeros.shape).astype(np.float16)
        words, zero_words = gptq(q, zeros, bits, less) if method == "gptq" else awq(q, zeros)
        base = name.removesuffix(".weight")
        tensors |= {f"{base}.qweight": words, f"{base}.qzeros": zero_words, f"{base}.scales": scales}
        if method == "gptq":
            tensors[f"{base}.g_idx"] = (np.arange(length) // size).astype(np.int32)
        of = np.arange(length) // size
        meant[name] = (scales[of].astype(np.float32) * (q.astype(np.float32) - zeros[of])).T
    safetensors.save_file(tensors, target / "model.safetensors")
    settings = json.loads((target / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": method, "bits": bits, "group_size": group, **config}
    (target / "config.json").write_text(json.dumps(settings))
    return meant


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gptq", {}),
        ("gptq", {"bits": 8}),
        ("gptq", {"checkpoint_format": "gptq_v2"}),
        ("gptq", {"group": -1, "desc_act": True}),
        ("awq", {"version": "gemm"}),
        ("awq", {"group": -1}),
    ],
)
def test_the_numbers_are_those_that_are_meant(tiny: Path, tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    meant = write(tiny, tmp_path / "q", method, **options)
    checkpoint = read_checkpoint(tmp_path / "q")
    assert checkpoint.kept.keys() == meant.keys()
    assert not [name for name in checkpoint.tensors if name.endswith((".qweight", ".qzeros", ".scales", ".g_idx"))]
    for name, array in meant.items():
        weight = stored_weight(checkpoint.tensors[name])
        assert weight.shape == array.shape
        np.testing.assert_array_equal(weight.rows(slice(None)), array)
        np.testing.assert_array_equal(weight.rows(slice(3, 13)), array[3:13])


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_bundle_keeps_them(
    tiny: Path, tiny_export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Built and proved; the graph is that of `tiny`, with the other checkpoint's weights in it."""
    from genai_bundle.builder.exporters import transformers as exporter

    meant = write(tiny, tmp_path / "q", method)

    def export(checkpoint: Any) -> Any:
        graphs = {name: model.clone() for name, model in tiny_export.graphs.items()}
        for name in meant:
            weight = stored_weight(checkpoint.tensors[name])
            graphs["decoder"].graph.initializers[name].const_value = graph_tensor(weight)
        return replace(tiny_export, graphs=graphs)

    monkeypatch.setattr(exporter, "export_decoder", export)
    build_checkpoint(tmp_path / "q", tmp_path / "x.genai")
    with open_bundle(tmp_path / "x.genai") as bundle:
        source = json.loads(bundle.read("manifest.json"))["source"]
    assert source["weights"] == {"stored": {"fp32": 1, "int4 in blocks of 16": 14}, "left": []}
    build_checkpoint(tmp_path / "q", tmp_path / "y.genai", BuildOptions(quantize="int8"))
    with open_bundle(tmp_path / "y.genai") as bundle:
        source = json.loads(bundle.read("manifest.json"))["source"]
    assert source["weights"]["stored"] == {"int4 in blocks of 16": 14, "int8 in blocks of 32": 1}


def change(folder: Path, name: str, array: Array) -> None:
    tensors = safetensors.load_file(folder / "model.safetensors")
    safetensors.save_file(tensors | {name: array}, folder / "model.safetensors")


def test_what_has_no_blocks_is_refused(tiny: Path, tmp_path: Path) -> None:
    base = "model.layers.0.mlp.up_proj"
    write(tiny, tmp_path / "order", "gptq")
    change(tmp_path / "order", f"{base}.g_idx", np.array([1, 0] * 16, np.int32))
    write(tiny, tmp_path / "zero", "gptq")
    change(tmp_path / "zero", f"{base}.qzeros", np.full((2, 6), -1, np.int32))
    write(tiny, tmp_path / "shape", "awq")
    change(tmp_path / "shape", f"{base}.scales", np.ones((3, 48), np.float16))
    write(tiny, tmp_path / "type", "awq")
    change(tmp_path / "type", f"{base}.qweight", np.ones((32, 6), np.float32))
    write(tiny, tmp_path / "method", "bitsandbytes")
    write(tiny, tmp_path / "layout", "awq", version="gemv")
    write(tiny, tmp_path / "group", "gptq", group=8)
    for folder, message in (
        ("order", r"up_proj: orders its rows by their importance \(desc_act\)"),
        ("zero", r"up_proj: has a zero point of 16, beyond 4 bits"),
        ("shape", r"up_proj: has qweight .* which do not fit groups of 16"),
        ("type", r"up_proj\.qweight: is F32\[32, 6\], expected a matrix of I32"),
        ("method", "quant_method is 'bitsandbytes'"),
        ("layout", "version 'gemv', which is not known here"),
        ("group", "has groups of 8, which do not divide into blocks"),
    ):
        with pytest.raises(SourceError, match=message):
            read_checkpoint(tmp_path / folder)
