# SPDX-License-Identifier: Apache-2.0
"""Folders of ONNX Runtime GenAI give the same tokens as bundles as they give in that runtime, side by side."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bundle.importers import tiny
from genai_bundle.builder.build import build
from genai_bundle.builder.options import BuildOptions
from genai_bundle.builder.report import Report, summary
from genai_bundle.bundle import Bundle, open_bundle
from genai_bundle.errors import SourceError, UsageError
from genai_runner import load
from genai_runner.backends.base import find_backend

PROMPTS = ([1, 2, 3], [7], [5, 4, 3, 2, 1, 9])  # without 0: the peer takes its padding id in a prompt for padding


def config(**decoder: Any) -> dict[str, Any]:
    return {
        "model": {
            "type": "llama", "vocab_size": tiny.WORDS, "context_length": 64, "eos_token_id": [11, 12],
            "pad_token_id": 0, "bos_token_id": 0,
            "decoder": {
                "session_options": {"log_id": "x", "provider_options": []}, "filename": "model.onnx",
                "head_size": tiny.WIDTH, "hidden_size": tiny.WIDTH, "num_attention_heads": 1,
                "num_key_value_heads": 1, "num_hidden_layers": 1, **decoder,
            },
        },
        "search": {"do_sample": False, "max_length": 64, "past_present_share_buffer": False, "num_beams": 1},
    }  # fmt: skip


def pipeline_config() -> dict[str, Any]:
    found = config(
        pipeline=[
            {"embeddings": {"filename": "embeddings.onnx", "inputs": ["input_ids"], "outputs": ["inputs_embeds"]}},
            {
                "prompt": {
                    "filename": "prompt.onnx", "run_on_token_gen": False,
                    "inputs": ["inputs_embeds", "attention_mask", "position_ids", *tiny.PAST],
                    "outputs": ["hidden_states", *tiny.PRESENT],
                }
            },
            {
                "token": {
                    "filename": "middle.onnx", "run_on_prompt": False,
                    "inputs": ["inputs_embeds", "attention_mask", "position_ids", *tiny.PAST],
                    "outputs": ["hidden_states", *tiny.PRESENT],
                }
            },
            {"lm_head": {"filename": "lm_head.onnx", "inputs": ["hidden_states"], "outputs": ["logits"]}},
        ]
    )  # fmt: skip
    found["model"]["type"] = "decoder-pipeline"
    del found["model"]["decoder"]["filename"]
    return found


def write(folder: Path, found: dict[str, Any], graphs: dict[str, onnx.ModelProto]) -> Path:
    folder.mkdir(exist_ok=True)
    tiny.write_json(folder / "genai_config.json", found)
    for name, graph in graphs.items():
        onnx.save(graph, folder / f"{name}.onnx")
    return folder


@pytest.fixture
def one_graph(tmp_path: Path) -> Path:
    return write(tmp_path / "one", config(), {"model": tiny.decoder()})


@pytest.fixture
def several(tmp_path: Path) -> Path:
    graphs = tiny.parts()
    return write(tmp_path / "several", pipeline_config(), graphs | {"prompt": graphs["middle"]})


def imported(folder: Path, **options: Any) -> Path:
    target = folder.parent / f"{folder.name}.genai"
    build(folder, target, BuildOptions(**options))
    return target


def ours(
    bundle: Path, rows: Sequence[Sequence[int]], steps: int, backend: str = "onnxruntime", form: str = "auto"
) -> list[list[int]]:
    with load(bundle, backend, variant=form, threads=1) as pipeline:
        return [pipeline(ids=[list(ids)], max_tokens=steps).outputs["tokens"][0].tolist() for ids in rows]


def every_engine(*forms: str) -> list[tuple[str, str]]:
    """Engines with the form of a bundle that they run; ONNX Runtime runs each of `forms`."""
    try:
        others = ["reference", find_backend("openvino").name]
    except UsageError:
        others = ["reference"]
    return [*(("onnxruntime", form) for form in forms), *((engine, "auto") for engine in others)]


def compute_exactly(file: Path) -> None:
    """Take from a graph the leave to round activations, for engines are compared exactly."""
    model = onnx.load(file, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    file.write_bytes(model.SerializeToString())


def shared_weights(bundle: Bundle, first: str, second: str) -> bool:
    """Whether all large weights of the second graph lie where the first one has them."""
    places = []
    for file in (first, second):
        tensors = [tensor for tensor in bundle.graph(file).graph.initializer if tensor.external_data]
        places.append({tuple((item.key, item.value) for item in tensor.external_data) for tensor in tensors})
    return bool(places[1]) and places[1] <= places[0]


def theirs(folder: Path, rows: Sequence[Sequence[int]], steps: int, batch: int = 1) -> list[list[int]]:
    """What the runtime draws, its ending id included, for each row; `batch` rows at a time."""
    import onnxruntime_genai as runtime

    model, found = runtime.Model(str(folder)), []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        params = runtime.GeneratorParams(model)
        params.set_search_options(max_length=len(some[0]) + steps, batch_size=batch, do_sample=False)
        generator = runtime.Generator(model, params)
        generator.append_tokens(np.array(some, np.int32))
        drawn: list[list[int]] = [[] for _ in some]
        while not generator.is_done():
            generator.generate_next_token()
            for row, token in zip(drawn, generator.get_next_tokens(), strict=True):
                row.append(int(token))
        found += drawn
    return found


@pytest.mark.shared
@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "rows", "steps", "batch"),
    [
        ("tiny-random-gpt2-fp32", [[0, 0, 0, 52], [0, 0, 195, 731], [1], [3, 1, 4, 1, 5, 9, 2, 6]], 24, 1),
        ("marian-batch", [[5], [7]], 4, 2),
    ],
)
def test_the_peer_s_own_folders_give_its_tokens(
    name: str, rows: list[list[int]], steps: int, batch: int, shared: Path, tmp_path: Path
) -> None:
    folder = shared / "peers" / "ort-genai" / name
    build(folder, tmp_path / "x.genai")
    expected = theirs(folder, rows, steps, batch)
    for backend, form in every_engine("auto", "portable"):
        assert ours(tmp_path / "x.genai", rows, steps, backend, form) == expected
    with open_bundle(tmp_path / "x.genai") as bundle:
        assert bundle.manifest.requires == ()


@pytest.mark.peers
@pytest.mark.parametrize("layout", ["one_graph", "several"])
def test_decoders_of_one_graph_and_of_several_give_the_peer_s_tokens(
    layout: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    assert ours(imported(folder), PROMPTS, 20) == theirs(folder, PROMPTS, 20)


@pytest.mark.peers
@pytest.mark.torch
@pytest.mark.shared
@pytest.mark.parametrize(("family", "precision"), [("llama", "int4"), ("gemma2", "fp32")])
def test_what_the_peer_s_builder_writes(family: str, precision: str, shared: Path, tmp_path: Path) -> None:
    """Group query attention on one shared buffer, the last dim of the cache a symbol, no position_ids; and with a cap,
    and a buffer that holds a window of eight tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"vocab_size": 512, "num_key_value_heads": 1, "max_position_embeddings": 128}
    shape |= {"sliding_window": 8, "head_dim": 16, "pad_token_id": 0} if family == "gemma2" else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, bos_token_id=1, eos_token_id=2, **shape))
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(tmp_path / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared / "checkpoints" / "stories260K" / name, tmp_path / "checkpoint" / name)
    folder = tmp_path / "folder"
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "tiny", "-i", tmp_path / "checkpoint"]
    options = ["-o", folder, "-p", precision, "-e", "cpu", "-c", tmp_path / "cache"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    compute_exactly(folder / "model.onnx")
    report = Report()
    build(folder, tmp_path / "x.genai", progress=report)
    assert any(note.startswith("model.onnx has a portable form: ") for note in report.notes)
    expected = theirs(folder, [[1, 403, 407, 261, 378]], 24)[0]
    with open_bundle(tmp_path / "x.genai") as bundle:
        assert bundle.manifest.requires == ()
        assert bundle.manifest.tests[0].inputs["prompt"] == "Once upon a time"
        state, [variant] = bundle.manifest.state["kv"], bundle.manifest.graphs["decoder"].variants
        assert (state.update, state.capacity) == ("append", 128)
        assert state.override(variant.state["kv"]).update == "shared"
        assert dict(variant.when) == {"backend": "onnxruntime"}
        assert shared_weights(bundle, "decoder.onnx", variant.file)
    for backend, form in every_engine("auto", "portable"):
        with load(tmp_path / "x.genai", backend, variant=form, precision="exact", threads=1) as pipeline:
            assert pipeline("Once upon a time", max_tokens=24).outputs["tokens"][0].tolist() == expected


def test_combined_caches_and_symbols_for_sizes(tmp_path: Path) -> None:
    """The last dim of the cache is a symbol: the configuration has the head size."""
    folder = write(tmp_path / "symbol", config(), {"model": tiny.decoder(size="kv_cache_dim")})
    plain = write(tmp_path / "plain", config(), {"model": tiny.decoder()})
    assert ours(imported(folder), PROMPTS, 9) == ours(imported(plain), PROMPTS, 9)


def test_names_of_ports_come_from_the_configuration(tmp_path: Path) -> None:
    past, present = ("k_in_0", "v_in_0"), ("k_out_0", "v_out_0")
    named = config(
        inputs={"past_key_names": "k_in_%d", "past_value_names": "v_in_%d"},
        outputs={"present_key_names": "k_out_%d", "present_value_names": "v_out_%d"},
    )
    bundle = imported(write(tmp_path / "named", named, {"model": tiny.decoder(past, present, ids="int32")}))
    plain = imported(write(tmp_path / "plain", config(), {"model": tiny.decoder()}))
    assert ours(bundle, PROMPTS, 9) == ours(plain, PROMPTS, 9)
    with open_bundle(bundle) as found:
        assert dict(found.manifest.state["kv"].ports) == {"k_in_{n}": "k_out_{n}", "v_in_{n}": "v_out_{n}"}


def test_the_record_says_what_was_read_and_compared(one_graph: Path) -> None:
    told: list[str] = []
    report = Report(told.append)
    build(one_graph, one_graph.parent / "x.genai", progress=report)
    assert "left out, for the caller to choose: search.num_beams" in report.notes
    assert (report.layout, report.proved) == ("a folder of ONNX Runtime GenAI", {"portable": None})
    assert "this is a folder of ONNX Runtime GenAI" in told
    assert "left out, deployment and not meaning: model.decoder.session_options" in told
    assert "left out, for the caller to choose: search.num_beams" in told
    with open_bundle(one_graph.parent / "x.genai") as bundle:
        source = bundle.manifest.source
        assert sorted(source["files"]) == ["genai_config.json", "model.onnx"]
        assert "plain loop" in source["proof"]["reference"]
        assert "dropped" not in source
        assert len(bundle.manifest.tests) == 3


def test_a_folder_of_the_hub_s_cache_is_recorded_with_its_revision(
    one_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--some-org--tiny"
    shutil.copytree(one_graph, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    report = Report()
    build(Path("some-org/tiny"), tmp_path / "x.genai", progress=report)
    with open_bundle(tmp_path / "x.genai") as bundle:
        source = bundle.manifest.source
        facts = summary(report, bundle)
    assert (source["repo"], source["revision"]) == ("some-org/tiny", commit) == (facts["repo"], facts["revision"])
    assert facts["read"]["size"] == sum(path.stat().st_size for path in one_graph.iterdir())


def test_a_key_that_is_not_understood_stops_the_build(one_graph: Path) -> None:
    found = json.loads((one_graph / "genai_config.json").read_text())
    found["model"]["decoder"]["novel"] = {"a": 1}
    found["search"]["min_length"] = 3
    tiny.write_json(one_graph / "genai_config.json", found)
    with pytest.raises(SourceError) as caught:
        imported(one_graph)
    message = str(caught.value)
    assert "model.decoder.novel" in message
    assert "search.min_length = 3" in message
    assert not (one_graph.parent / "one.genai").exists()
    with open_bundle(imported(one_graph, allow_lossy=True)) as bundle:
        assert bundle.manifest.source["dropped"] == {"genai_config.json": ["model.decoder.novel", "search.min_length"]}


def change(found: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(found)
    *path, last = key.split(".")
    inner = found
    for part in path:
        inner = inner[part]
    inner[last] = value
    return found


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.decoder.filename", "absent.onnx", "the graph absent.onnx is missing"),
        ("model.decoder.filename", "../model.onnx", "model.decoder.filename: is '../model.onnx', expected the name"),
        ("model.context_length", 0, "model.context_length: is 0"),
        ("model.eos_token_id", "</s>", "model.eos_token_id: is '</s>', expected token ids"),
        ("model.decoder.inputs", {"past_key_names": "past"}, "one %d for the layer"),
        ("model.decoder.inputs", {"attention_mask": "m"}, "input 'attention_mask' has a role that is not understood"),
        ("model.decoder.outputs", {"logits": "scores"}, "no output 'scores'"),
        ("model.decoder.sliding_window", {"window_size": 8}, "model.decoder.sliding_window.window_size"),
        ("model.encoder", {"filename": "encoder.onnx"}, "an encoder of a kind that cannot be imported"),
    ],
)
def test_what_cannot_be_imported_is_refused(one_graph: Path, key: str, value: Any, words: str) -> None:
    tiny.write_json(one_graph / "genai_config.json", change(config(), key, value))
    with pytest.raises(SourceError) as caught:
        imported(one_graph)
    assert words in str(caught.value)


def test_a_graph_that_a_bundle_may_not_hold_names_file_and_node(one_graph: Path) -> None:
    graph = tiny.decoder()
    graph.opset_import.add(domain="custom.ops", version=1)
    graph.graph.node[0].domain = "custom.ops"
    graph.graph.node[0].name = "first"
    onnx.save(graph, one_graph / "model.onnx")
    with pytest.raises(SourceError) as caught:
        imported(one_graph)
    assert "model.onnx" in str(caught.value)
    assert "first" in str(caught.value)
    (one_graph / "model.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(SourceError, match=r"model\.onnx is not an ONNX model"):
        imported(one_graph)


def test_graphs_for_the_prompt_need_a_partner(several: Path) -> None:
    found = pipeline_config()
    del found["model"]["decoder"]["pipeline"][2]
    tiny.write_json(several / "genai_config.json", found)
    with pytest.raises(SourceError, match="do not come in pairs"):
        imported(several)
