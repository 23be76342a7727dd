# SPDX-License-Identifier: Apache-2.0
"""mobius as an exporter: chosen, tried second, and believed only when its graph computes what the model computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from conftest import optional

pytestmark = pytest.mark.torch
torch = optional("torch", "torch")
optional("mobius", "torch")

from genai_bundle.builder.build import build  # noqa: E402
from genai_bundle.builder.exporters import mobius  # noqa: E402
from genai_bundle.builder.exporters import transformers as first  # noqa: E402
from genai_bundle.builder.exporters.replay import rearranged  # noqa: E402
from genai_bundle.builder.options import BuildOptions  # noqa: E402
from genai_bundle.builder.safetensors import StoredTensor  # noqa: E402
from genai_bundle.bundle import open_bundle  # noqa: E402
from genai_bundle.errors import ProofError, SourceError  # noqa: E402
from genai_runner import load  # noqa: E402


def test_it_can_be_chosen(tiny: Path, tmp_path: Path) -> None:
    told: list[str] = []
    target = tmp_path / "chosen.genai"
    build(tiny, target, BuildOptions(exporter="mobius"), told.append)
    assert "exporting with mobius" in told
    assert "exporting with transformers" not in told
    with open_bundle(target) as bundle:
        assert bundle.manifest.source["exporter"]["name"] == "mobius"
        weights = len(bundle.read("weights/decoder-00.bin"))
        graph = onnx.ModelProto.FromString(bundle.read("decoder.onnx"))
    ports = {port.name: [dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim]
             for port in graph.graph.input}  # fmt: skip
    assert ports["input_ids"] == ["batch", "sequence"]
    assert ports["attention_mask"] == ["batch", "total"]
    assert ports["past_key_values.1.value"] == ["batch", 2, "past", 8]
    assert ports["num_logits"] == []
    assert graph.opset_import[0].version == 23
    assert weights < 1.1 * (tiny / "model.safetensors").stat().st_size  # the tied table once
    with load(target) as pipeline:
        assert len(pipeline("Once upon a time", max_tokens=5).tokens) == 5


def test_it_is_tried_when_the_first_exporter_fails(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise SourceError("cannot trace this model")

    monkeypatch.setattr(first, "export_decoder", fail)
    told: list[str] = []
    build(tiny, tmp_path / "second.genai", BuildOptions(), told.append)
    failed = told.index("transformers failed: cannot trace this model")
    assert told[failed + 1] == "exporting with mobius"


def test_a_wrong_graph_is_not_believed(tmp_path: Path) -> None:
    """mobius takes any config for one without a window."""
    from transformers import MistralConfig, MistralForCausalLM

    from families import BASE, save, write_text_files

    folder = tmp_path / "window"
    save(MistralForCausalLM(MistralConfig(**(BASE | {"sliding_window": 12}))), folder)
    write_text_files(folder)
    with pytest.raises(ProofError, match=r"differs from the model by \d\.\d+ at position"):
        build(folder, tmp_path / "wrong.genai", BuildOptions(exporter="mobius"))
    assert not (tmp_path / "wrong.genai").exists()


def test_a_recurrent_graph_takes_the_whole_prompt(tmp_path: Path) -> None:
    """One group, for with several mobius is wrong."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    from families import save, write_text_files

    sizes = {"vocab_size": 260, "hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 8}
    config = Mamba2Config(**sizes, num_hidden_layers=2, n_groups=1, chunk_size=8)
    folder = tmp_path / "mamba"
    save(Mamba2ForCausalLM(config), folder)
    write_text_files(folder)
    build(folder, tmp_path / "mamba.genai", BuildOptions(exporter="mobius"))
    with open_bundle(tmp_path / "mamba.genai") as bundle:
        assert {name: state.update for name, state in bundle.manifest.state.items()} == {"recurrent": "replace"}
        ports = bundle.ports("decoder.onnx").inputs
    assert ports["input_ids"].dims == ("batch", "sequence")
    assert ports["past_key_values.1.recurrent"].dims[1:] == (4, 8, 16)


def test_a_graph_that_cannot_be_run_is_not_believed(tmp_path: Path) -> None:
    from families import FAMILIES

    FAMILIES["jamba"](tmp_path / "jamba")
    with pytest.raises(ProofError, match=r"the graph cannot be run: .*Squeeze"):
        build(tmp_path / "jamba", tmp_path / "wrong.genai", BuildOptions(exporter="mobius"))


def test_without_it_the_reason_is_said(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mobius, "find_spec", lambda _: None)
    with pytest.raises(SourceError, match=r"mobius: it is not installed\. Install it with: pip install"):
        build(tiny, tmp_path / "out.genai", BuildOptions(exporter="mobius"))


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_rearranged_weights_are_made_when_they_are_read(dtype: str) -> None:
    kind = np.float32 if dtype == "F32" else ml_dtypes.bfloat16
    arrays = {name: np.arange(24).reshape(4, 6).astype(kind) + index for index, name in enumerate("ab")}
    tensors = {name: StoredTensor(name, "x", dtype, (4, 6), array.tobytes()) for name, array in arrays.items()}  # type: ignore[arg-type]

    def rearrange(given: dict[str, Any]) -> Mapping[str, Any]:
        left, right = given["a"].split([2, 4], dim=1)
        both = torch.cat([given["a"], given["b"]])
        return {"same": given["b"], "turned": right.t().contiguous(), "left": left, "scaled": both * 2 - 1}

    found = rearranged(tensors, rearrange)
    a, b = (arrays[name].astype(np.float32) for name in "ab")
    expected = {"same": b, "turned": a[:, 2:].T, "left": a[:, :2], "scaled": np.concatenate([a, b]) * 2 - 1}
    assert {name: weight.shape for name, weight in found.items()} == {name: v.shape for name, v in expected.items()}
    for name, weight in found.items():
        assert weight.stored == dtype
        np.testing.assert_array_equal(weight.rows(slice(None)).astype(np.float32), expected[name])
        np.testing.assert_array_equal(weight.rows(slice(1, 3)).astype(np.float32), expected[name][1:3])
    assert found["same"].source is tensors["b"]


@pytest.mark.parametrize(
    "rearrange",
    [lambda given: {"a": given["a"].add_(1)}, lambda given: {"a": given["a"] * float(given["a"].sum())}],
    ids=["in place", "by value"],
)
def test_what_cannot_be_done_later_is_refused(rearrange: Any) -> None:
    tensors = {"a": StoredTensor("a", "x", "F32", (2,), memoryview(bytes(8)))}
    with pytest.raises(SourceError, match="its weights cannot be arranged"):
        rearranged(tensors, rearrange)
