# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters that PEFT saved: in the bundle they give what PEFT itself computes, merged or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.builder.conftest import MakeModel
from conftest import optional
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import SourceError, UsageError
from genai_runner import load
from genai_runner.verify import run_tests

pytestmark = pytest.mark.torch
torch = optional("torch", "torch")
peft = optional("peft", "torch")

from genai_bundle.builder.exporters.quiet import quiet  # noqa: E402

STEPS = 12
FORMS = [("onnxruntime", "portable"), ("onnxruntime", "ort-cpu"), ("reference", "portable")]
ADAPTERS: dict[str, dict[str, Any]] = {
    "queries": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "all": {
        "r": 5, "lora_alpha": 6, "target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"down_proj": 3},
        "alpha_pattern": {r"layers\.1\..*up_proj": 1},
    },
}  # fmt: skip


def source_model(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def make_adapter(base: Path, folder: Path, **config: Any) -> Path:
    """A random adapter of the checkpoint `base`, as PEFT saves it; no matrix of zeros, which new ones have."""
    torch.manual_seed(len(config))
    with quiet():  # peft warns of what a test does on purpose
        model = peft.get_peft_model(source_model(base), peft.LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    with quiet():
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(tiny, folder / name, **config) for name, config in ADAPTERS.items()}


@pytest.fixture
def export_once(tiny_export: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(tiny_export, monkeypatch)


def patch(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of `tiny` take the graph that was exported before."""
    from genai_bundle.builder.exporters import Export
    from genai_bundle.builder.exporters import transformers as exporter

    def copy(_: Any) -> Export:
        graphs = {name: model.clone() for name, model in exported.graphs.items()}
        return Export(graphs, exported.state, exported.exporter, exported.version)

    monkeypatch.setattr(exporter, "export_decoder", copy)


@pytest.fixture(scope="module")
def built(tiny: Path, tiny_export: Any, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` with both adapters."""
    from genai_bundle.builder.from_checkpoint import build_checkpoint
    from genai_bundle.builder.options import BuildOptions

    target = tmp_path_factory.mktemp("built") / "x.genai"
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch(tiny_export, monkeypatch)
        build_checkpoint(tiny, target, BuildOptions(adapters=folders))
    return target


@pytest.fixture(scope="module")
def expected(tiny: Path, folders: dict[str, Path]) -> dict[str | None, list[np.ndarray[Any, Any]]]:
    """Logits of greedy steps after the ids of `Once`, by transformers, and by PEFT with each adapter unmerged."""
    found = {}
    for name in (None, *folders):
        model = source_model(tiny)
        if name is not None:
            model = peft.PeftModel.from_pretrained(model, str(folders[name]))
        ids, rows = list(ONCE), []
        with torch.no_grad():
            for _ in range(STEPS):
                rows.append(model(input_ids=torch.tensor([ids])).logits[0, -1].numpy())
                ids.append(int(rows[-1].argmax()))
        found[name] = rows
    return found


ONCE = (49, 80, 69, 71)


def test_a_large_base_is_asked_module_by_module(
    tiny: Path, folders: dict[str, Path], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The yardstick of a proof, without the base in memory: the logits of PEFT's own model, and parameters no bytes."""
    from genai_bundle.builder import source_model as module
    from genai_bundle.builder.adapters.folder import read_adapter
    from genai_bundle.builder.checkpoint import read_checkpoint
    from genai_bundle.builder.reference import Question, Reference

    monkeypatch.setattr(module, "LOADED", 0)
    for name, folder in folders.items():
        reference = Reference(replace(read_checkpoint(tiny), adapter=read_adapter(name, folder)))
        found = reference.greedy(Question(ONCE), STEPS)
        np.testing.assert_allclose(found.logits[len(ONCE) - 1 :], expected[name], rtol=0, atol=1e-4)
        bytes_of = {key: one.device.type for key, one in reference._model.named_parameters()}
        assert {kind for key, kind in bytes_of.items() if ".lora_" not in key} == {"meta"}


@pytest.mark.parametrize(("backend", "variant"), FORMS)
def test_every_adapter_gives_what_peft_gives_and_none_the_base(
    backend: str, variant: str, built: Path, expected: dict[str | None, list[np.ndarray[Any, Any]]]
) -> None:
    """One pipeline, the adapters in turn."""
    with load(built, backend, variant=variant) as pipe:
        for name in (None, "all", "queries", None, "all"):
            decoder = pipe.generator(pipe.decode(ONCE), adapter=name, max_tokens=STEPS)
            assert tuple(decoder.tokens) == ONCE
            for row in expected[name]:
                np.testing.assert_allclose(decoder.get_logits(), row, atol=1e-3)
                decoder.append_tokens([int(row.argmax())])


def test_the_bundle_proves_each_adapter_anywhere(built: Path) -> None:
    with load(built, variant="portable") as pipe:
        asked = [test.inputs.get("adapter") for test in pipe.manifest.tests]
        assert {None, "all", "queries"} == set(asked)
        assert all(result.passed for result in run_tests(pipe))
        # The vectors tell the adapters apart.
        outputs = {json.dumps(test.outputs["tokens"]) for test in pipe.manifest.tests if "Once" in str(test.inputs)}
        assert len(outputs) == 3


def test_adapters_lie_beside_one_base(built: Path, tiny: Path, folders: dict[str, Path]) -> None:
    with open_bundle(built) as bundle:
        manifest = bundle.manifest
        assert {name: dict(one.graphs) for name, one in manifest.adapters.items()} == {
            name: {"decoder": f"adapter-{name}.decoder.onnx"} for name in folders
        }
        base = sum(member.size for path, member in bundle.members.items() if path.startswith("weights/decoder"))
        assert base < 1.05 * (tiny / "model.safetensors").stat().st_size
        ports = bundle.ports("adapter-all.decoder.onnx").outputs
        assert ports["lora.model.layers.0.mlp.down_proj.a"].dims == (48, 3)
        assert ports["lora.model.layers.0.mlp.down_proj.b"].dims == (3, 32)
        assert set(manifest.source["adapters"]) == set(folders)
        assert "merged by peft" in manifest.source["proof"]["adapters"]["all"]["reference"]


def test_a_quantised_base_has_adapters_too(
    tiny: Path, folders: dict[str, Path], export_once: None, tmp_path: Path
) -> None:
    """The proof inside the build compares with PEFT's merging into the weights that int4 stands for."""
    from genai_bundle.builder.from_checkpoint import build_checkpoint
    from genai_bundle.builder.options import BuildOptions

    target = tmp_path / "x.genai"
    adapters = {"queries": folders["queries"]}
    build_checkpoint(tiny, target, BuildOptions(adapters=adapters, quantize="int4", block_size=16))
    with load(target) as pipe:
        assert pipe("Once", adapter="queries", max_tokens=8).tokens != pipe("Once", max_tokens=8).tokens
        operators = {node.op_type for node in pipe.bundle.graph("decoder.ort-cpu.onnx").graph.node}
        assert "MatMulNBits" in operators


@pytest.mark.parametrize("what", ["base", "tied head"])
def test_an_adapter_that_does_not_fit_is_refused_and_nothing_left(
    what: str, tiny: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    from genai_bundle.builder.from_checkpoint import build_checkpoint
    from genai_bundle.builder.options import BuildOptions

    if what == "base":
        other = make_model(hidden_size=48, num_hidden_layers=1)
        folder = make_adapter(other, tmp_path / "misfit", r=2, target_modules=["q_proj"])
        problem = r"changes a matrix of 48 x 48, and the base's 'model\.layers\.0\.self_attn\.q_proj' is one of 32 x 32"
    else:
        folder = make_adapter(tiny, tmp_path / "misfit", r=2, target_modules=["lm_head"])
        problem = "for 'lm_head', which is not the base's"
    target = tmp_path / "out" / "x.genai"
    target.parent.mkdir()
    with pytest.raises(SourceError, match=problem) as caught:
        build_checkpoint(tiny, target, BuildOptions(adapters={"misfit": folder}))
    assert "misfit/adapter_model.safetensors" in str(caught.value)
    assert list(target.parent.iterdir()) == []


def test_without_peft_nothing_is_begun(
    tiny: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genai_bundle.builder import from_checkpoint
    from genai_bundle.builder.options import BuildOptions

    present = from_checkpoint.find_spec
    monkeypatch.setattr(from_checkpoint, "find_spec", lambda name: None if name == "peft" else present(name))
    with pytest.raises(UsageError, match=r'needs peft.* pip install "genai-bundle\[adapters\]"'):
        from_checkpoint.build_checkpoint(tiny, tmp_path / "x.genai", BuildOptions(adapters=folders))
    assert list(tmp_path.iterdir()) == []
