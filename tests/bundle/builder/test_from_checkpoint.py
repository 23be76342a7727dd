# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint folder to a proved bundle: all of it, the same bytes every time, or nothing."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

pytestmark = pytest.mark.torch

from bundle.exports.peer import Peer, exported, prompts  # noqa: E402
from genai_bundle.builder import from_checkpoint  # noqa: E402
from genai_bundle.builder.build import build  # noqa: E402
from genai_bundle.builder.from_checkpoint import build_checkpoint  # noqa: E402
from genai_bundle.builder.options import BuildOptions  # noqa: E402
from genai_bundle.builder.report import Report, summary  # noqa: E402
from genai_bundle.bundle import open_bundle  # noqa: E402
from genai_bundle.cli.report import build_rows  # noqa: E402
from genai_bundle.errors import ProofError, SourceError, UsageError  # noqa: E402
from genai_runner import load  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)


@pytest.fixture(scope="module")
def stories(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("stories") / "stories.genai"
    build_checkpoint(shared / "checkpoints" / "stories260K", target, BuildOptions(details={"license": "MIT"}))
    return target


@pytest.fixture
def chatty(tiny: Path, tmp_path: Path) -> Path:
    """`tiny` with a chat template and defaults that sample."""
    folder = tmp_path / "chatty"
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    settings = {"do_sample": True, "temperature": 0.5, "eos_token_id": [2, 0]}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture
def export_once(tiny_export: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of `tiny`'s weights take the graph that was exported before."""
    from genai_bundle.builder.exporters import Export
    from genai_bundle.builder.exporters import transformers as exporter

    graphs = {name: model.clone() for name, model in tiny_export.graphs.items()}
    copy = Export(graphs, tiny_export.state, tiny_export.exporter, tiny_export.version)
    monkeypatch.setattr(exporter, "export_decoder", lambda *_: copy)


@pytest.mark.shared
@pytest.mark.peers
def test_a_built_bundle_runs_in_the_peer(stories: Path, tmp_path: Path) -> None:
    """Side by side: exported to onnxruntime-genai, it gives the tokens of the source model."""
    peer = Peer(exported(stories, tmp_path / "out", "ort-genai"))
    for given, tokens in prompts(stories):
        assert peer.greedy([peer.ids(given)], given["max_tokens"])[0] == tokens


@pytest.mark.shared
def test_each_weight_once(shared: Path, stories: Path) -> None:
    source = (shared / "checkpoints" / "stories260K" / "model.safetensors").stat().st_size
    assert stories.stat().st_size < 1.25 * source
    with open_bundle(stories) as bundle:
        assert [path for path in bundle.members if path.startswith("weights/")] == ["weights/decoder-00.bin"]
        assert bundle.manifest.license == "MIT"
        assert bundle.manifest.name == "stories260K"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("backend", "variant"), [("onnxruntime", "portable"), ("onnxruntime", "ort-cpu"), ("reference", "portable")]
)
def test_the_published_greedy_text(shared: Path, stories: Path, backend: str, variant: str) -> None:
    golden = json.loads((shared / "checkpoints" / "stories260K" / "golden_greedy.json").read_text(encoding="utf-8"))
    start, steps = len(golden["prompt_ids"]), golden["steps"]
    with load(stories, backend, variant=variant) as pipeline:
        result = pipeline("", max_tokens=steps)
    assert result.tokens == golden["greedy_ids"][start : start + steps]


@pytest.mark.shared
def test_twice_the_same_bytes(shared: Path, stories: Path, tmp_path: Path) -> None:
    """From another folder of the same name, too: no path, no time, no count of earlier builds."""
    folder = tmp_path / "elsewhere" / "stories260K"
    shutil.copytree(shared / "checkpoints" / "stories260K", folder)
    target = tmp_path / "again.genai"
    build_checkpoint(folder, target, BuildOptions(details={"license": "MIT"}))
    assert target.read_bytes() == stories.read_bytes()


@pytest.mark.peers
@pytest.mark.usefixtures("export_once")
def test_quantised_weights_run_in_the_peer_as_they_are_stored(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.genai"
    build_checkpoint(tiny, target, BuildOptions(quantize="int4"))
    folder = exported(target, tmp_path / "out", "ort-genai")
    nodes = ir.load(folder / "model.onnx").graph
    assert "MatMulNBits" in {node.op_type for node in nodes}
    with open_bundle(target) as bundle:
        weights = sum(one.size for path, one in bundle.manifest.files.items() if path.startswith("weights/"))
    assert (folder / "model.onnx.data").stat().st_size <= weights
    peer = Peer(folder)
    for given, tokens in prompts(target):
        assert peer.greedy([peer.ids(given)], given["max_tokens"])[0] == tokens


@pytest.mark.usefixtures("export_once")
def test_a_chat_model(chatty: Path, tmp_path: Path) -> None:
    told: list[str] = []
    target = tmp_path / "chatty.genai"
    identity = build_checkpoint(chatty, target, BuildOptions(details={"name": "small talk"}), told.append)
    assert told[-1].startswith("proved, largest difference: portable ")
    with open_bundle(target) as bundle:
        assert bundle.id == identity
        manifest = bundle.manifest
        assert bundle.read("chat_template.jinja").decode() == TEMPLATE
    assert manifest.name == "small-talk"
    assert manifest.text is not None
    assert manifest.text.eos == (2, 0)
    assert dict(manifest.generation) == {"temperature": 0.5, "top_k": 50}
    assert {name: one.optional for name, one in manifest.inputs.items()} == {"messages": True, "prompt": True}
    assert "messages" in manifest.tests[-1].inputs
    with load(target) as pipeline:
        spoken = pipeline(messages=[{"role": "user", "content": "Hi"}], max_tokens=4, temperature=0)
        written = pipeline("user: Hi\nA: ", max_tokens=4, temperature=0)
    assert spoken.tokens == written.tokens


@pytest.mark.usefixtures("export_once")
def test_a_graph_that_computes_something_else_is_not_written(
    tiny: Path, tmp_path: Path, tiny_export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genai_bundle.builder.variants import ort_gqa

    model, _ = ort_gqa.make_variant(tiny_export.graphs["decoder"])
    assert model is not None
    attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    attention.attributes["scale"] = ir.AttrFloat32("scale", 0.5)
    monkeypatch.setattr(ort_gqa, "make_variant", lambda _: (model, ""))
    target = tmp_path / "wrong.genai"
    target.write_bytes(b"before")
    with pytest.raises(ProofError, match=r"variant 'ort-cpu', logits: prefill .* present\.1\.key"):
        build_checkpoint(tiny, target, BuildOptions(overwrite=True, exporter="transformers"))
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.genai"]
    assert target.read_bytes() == b"before"


@pytest.mark.usefixtures("export_once")
def test_the_report_says_which_exporter_failed_and_the_bundle_says_it_too(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genai_bundle.builder.kinds import causal

    def broken(_: object) -> Any:
        raise SourceError("meets an operator of 1.25 years ago", where="somewhere")

    known = causal.exporters()
    monkeypatch.setattr(causal, "exporters", lambda: {"broken": broken, "transformers": known["transformers"]})
    told: list[str] = []
    report = Report(told.append)
    build(tiny, tmp_path / "x.genai", progress=report)
    assert [(name, str(error)) for name, error in report.failures] == [
        ("broken", "somewhere: meets an operator of 1.25 years ago")
    ]
    assert report.layout == "a checkpoint folder"
    assert list(report.proved) == ["portable", "ort-cpu"]
    assert all(gap is not None and gap < 1e-3 for gap in report.proved.values())
    with open_bundle(tmp_path / "x.genai") as bundle:
        facts = summary(report, bundle)
        source = bundle.manifest.source
    assert source["tried"] == [{"name": "broken", "failed": "export"}]
    assert source["proof"]["forms"] == ["portable", "ort-cpu"]
    read = sum((tiny / name).stat().st_size for name in source["files"])
    assert facts["read"] == {"files": source["files"], "size": read}
    assert 0.5 < facts["sizes"]["weights"] / read < 1.1
    assert "1.25 years" not in json.dumps(source)
    words = [word for word, _ in build_rows(facts)]
    assert list(dict.fromkeys(words)) == [
        "source",
        "exporter",
        "tried",
        "read",
        "proof",
        "proved",
        "weights",
        "size",
    ]


@pytest.mark.usefixtures("export_once")
def test_without_a_variant(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genai_bundle.builder.variants import ort_gqa

    monkeypatch.setattr(ort_gqa, "make_variant", lambda _: (None, "no pattern"))
    told: list[str] = []
    target = tmp_path / "plain.genai"
    build_checkpoint(tiny, target, progress=told.append)
    assert "no variant of decoder for ONNX Runtime: no pattern" in told
    with zipfile.ZipFile(target) as archive:
        assert "decoder.ort-cpu.onnx" not in archive.namelist()


@pytest.mark.usefixtures("export_once")
def test_a_graph_that_ignores_the_models_window_is_found(tiny: Path, tmp_path: Path) -> None:
    """Mistral is llama with a window, under the same names. No prompt is long enough to tell one from the other."""
    folder = tmp_path / "window"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    changes = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 60}
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    with pytest.raises(ProofError, match=r"prefill and cached steps after \d+ tokens: differs from the model"):
        build_checkpoint(folder, tmp_path / "window.genai")
    assert not list(tmp_path.glob("*.genai*"))


def test_the_target_is_not_replaced_unasked(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "taken.genai"
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        build_checkpoint(tiny, target)
    assert target.read_bytes() == b"mine"


def test_a_wrong_folder_is_refused_before_anything_runs(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny, folder)
    (folder / "tokenizer.json").unlink()
    told: list[str] = []
    with pytest.raises(SourceError, match=r"tokenizer\.json is missing"):
        build_checkpoint(folder, tmp_path / "broken.genai", progress=told.append)
    assert told == ["reading the checkpoint"]
    assert not (tmp_path / "broken.genai").exists()


@pytest.mark.parametrize(
    ("folder", "name"), [("TinyLlama 1.1B", "TinyLlama-1.1B"), ("..", "model"), ("é", "model"), ("a/b", "a-b")]
)
def test_names(folder: str, name: str) -> None:
    clean: Callable[[str], str] = from_checkpoint._name
    assert clean(folder) == name
