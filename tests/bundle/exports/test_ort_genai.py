# SPDX-License-Identifier: Apache-2.0
"""A bundle exported to ort-genai gives its greedy tokens in onnxruntime-genai; what cannot be said is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from bundle.exports.peer import Peer, exported, prompts
from genai_bundle.builder.build import build
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import UsageError
from genai_bundle.exports import choose
from genai_bundle.exports.generator import generator
from genai_bundle.exports.rewiring import EVERY, rewire
from genai_bundle.writer import write_bundle
from genai_runner import load
from runner.tiny import bundle, counter, model


@pytest.fixture(scope="module", params=["auto", "portable"])
def folder(request: pytest.FixtureRequest, sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(sample, tmp_path_factory.mktemp("ort-genai") / "sample", "ort-genai", request.param)


@pytest.mark.peers
def test_the_peer_gives_the_source_model_s_tokens(folder: Path, sample: Path) -> None:
    peer = Peer(folder)
    for given, tokens in prompts(sample):
        assert peer.greedy([peer.ids(given)], given["max_tokens"])[0] == tokens


@pytest.mark.peers
def test_the_peer_gives_the_runner_s_tokens_for_long_prompts_and_in_pieces(folder: Path, sample: Path) -> None:
    peer = Peer(folder)
    text = "One day a small dog went to the park and saw a big red ball under a tree. " * 5
    ids = peer.ids({"prompt": text})
    with load(sample, threads=1) as pipeline:
        wanted = pipeline(text, max_tokens=40, temperature=0.0).outputs["tokens"][0].tolist()
    assert peer.greedy([ids], 40)[0] == wanted
    params = peer.runtime.GeneratorParams(peer.model)
    params.set_search_options(do_sample=False, max_length=len(ids) + 40)
    split = peer.runtime.Generator(peer.model, params)
    split.append_tokens(np.array([ids[:7]], np.int32))
    split.append_tokens(np.array([ids[7:]], np.int32))
    while not split.is_done():
        split.generate_next_token()
    assert split.get_sequence(0)[len(ids) :].tolist() == wanted


@pytest.mark.peers
def test_rows_of_different_lengths_and_sampling_work_there_too(folder: Path, sample: Path) -> None:
    peer = Peer(folder)
    long, short = (peer.ids({"prompt": text}) for text in ("Once upon a time there was", "The dog"))
    padding = json.loads((folder / "genai_config.json").read_text())["model"]["pad_token_id"]
    together = peer.greedy([long, short + [padding] * (len(long) - len(short))], 12)
    assert together == [peer.greedy([row], 12)[0] for row in (long, short)]
    params = peer.runtime.GeneratorParams(peer.model)  # the defaults sample
    params.set_search_options(max_length=30)
    generator = peer.runtime.Generator(peer.model, params)
    generator.append_tokens(np.array([long], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert len(generator.get_sequence(0)) > len(long)


@pytest.mark.peers
def test_an_end_token_that_ends_a_prompt_is_not_taken_for_padding(sample: Path, tmp_path: Path) -> None:
    """Many checkpoints pad with the token that ends each turn of a conversation."""
    with open_bundle(sample) as opened:
        manifest = json.loads(opened.manifest.raw)
        members = {path: opened.read(path) for path in manifest.pop("files")}
    manifest["text"]["special"]["pad_token"] = manifest["text"]["special"]["eos_token"]
    write_bundle(tmp_path / "x.genai", manifest, members)
    prompt = "The end.<|eos|>Once upon a time<|eos|>"
    with load(tmp_path / "x.genai", threads=1) as pipeline:
        wanted = pipeline(prompt, max_tokens=20, temperature=0.0).outputs["tokens"][0].tolist()
    peer = Peer(exported(tmp_path / "x.genai", tmp_path / "out", "ort-genai"))
    ids = peer.ids({"prompt": prompt})
    assert peer.greedy([ids, ids], 20) == [wanted, wanted]


def test_the_folder_comes_back_as_a_bundle_with_the_same_tokens(folder: Path, sample: Path, tmp_path: Path) -> None:
    build(folder, tmp_path / "back.genai")
    given, tokens = prompts(sample)[0]
    with load(tmp_path / "back.genai", threads=1) as pipeline:
        found = pipeline(given["prompt"], max_tokens=given["max_tokens"], temperature=0.0)
    assert found.outputs["tokens"][0].tolist() == tokens


@pytest.mark.peers
def test_the_default_that_no_ngram_comes_twice_goes_there_and_back(sample: Path, tmp_path: Path) -> None:
    with open_bundle(sample) as opened:
        manifest = json.loads(opened.manifest.raw)
        members = {path: opened.read(path) for path in manifest.pop("files")}
    manifest["generation"]["no_repeat_ngram_size"] = 2
    write_bundle(tmp_path / "x.genai", manifest, members)
    with load(tmp_path / "x.genai", threads=1) as pipeline:
        wanted = pipeline("Once upon a time", max_tokens=120, temperature=0.0).tokens
        assert wanted != pipeline("Once upon a time", max_tokens=120, temperature=0.0, no_repeat_ngram_size=0).tokens
    peer = Peer(exported(tmp_path / "x.genai", tmp_path / "out", "ort-genai"))
    assert peer.greedy([peer.ids({"prompt": "Once upon a time"})], len(wanted)) == [wanted]
    build(tmp_path / "out", tmp_path / "back.genai")
    with open_bundle(tmp_path / "back.genai") as back:
        assert back.manifest.generation["no_repeat_ngram_size"] == 2


def test_what_the_configuration_says(sample: Path, tmp_path: Path) -> None:
    found = json.loads((exported(sample, tmp_path / "x", "ort-genai") / "genai_config.json").read_text())
    settings, decoder = found["model"], found["model"]["decoder"]
    assert (settings["context_length"], settings["vocab_size"], settings["eos_token_id"]) == (512, 1280, [1, 6])
    assert (settings["bos_token_id"], settings["pad_token_id"]) == (0, 2)
    shape = ("head_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    assert [decoder[key] for key in shape] == [16, 6, 2, 4]
    assert decoder["inputs"]["past_key_names"] == "past_key_values.%d.key"
    wanted = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.95, "past_present_share_buffer": True}
    assert {key: found["search"][key] for key in wanted} == wanted
    about = json.loads((tmp_path / "x" / "genai-bundle-export.json").read_text())
    assert about["variant"] == "ort-cpu"
    assert any("golden vectors" in line for line in about["lost"])


LENGTHS = """
decoder (int64[batch, seq] ids, int64[batch, total] mask, float[batch, 1, past, 1] p.0.k, int32[batch] last,
         int32 total_length, int64[1] before, int64 room, int64 num_logits)
    => (float[batch, num_logits, 8] logits, float[batch, 1, total, 1] q.0.k)
{
    axis = Constant <value = int64[1] {1}> ()   column = Constant <value = int64[1] {3}> ()
    c = Cast <to = 1> (ids)   u = Unsqueeze (c, axis)   new = Unsqueeze (u, column)
    q.0.k = Concat <axis = 2> (p.0.k, new)
    a = Cast <to = 7> (last)   b = Cast <to = 7> (total_length)   s = Add (a, b)   t = Add (s, before)
    r = Add (t, room)   f = Cast <to = 1> (r)   e = Unsqueeze (f, axis)   w = Unsqueeze (e, axis)
    shape = Constant <value = int64[3] {2, 3, 8}> ()   all = Expand (w, shape)
    n = Neg (num_logits)   one = Constant <value = int64[1] {-1}> ()   start = Reshape (n, one)
    stop = Constant <value = int64[1] {9}> ()   logits = Slice (all, start, stop, axis)
}
""".replace("p.0.k", '"p.0.k"').replace("q.0.k", '"q.0.k"')


def lengths(target: Path) -> Path:
    feeds = {
        "ids": "ids", "mask": "kv.mask", "last": "kv.last", "total_length": "kv.total", "before": "kv.len",
        "room": "kv.capacity",
    }  # fmt: skip
    body = {"run": "decoder", "in": feeds, "with": {"num_logits": 1}, "out": {"logits": "logits"}}
    generate = {"carry": {"ids": "token"}, "do": [body], "logits": "logits", "emit": {"tokens": "token"}}
    state = {"graph": "decoder", "ports": {"p.{n}.k": "q.{n}.k"}, "axis": 2, "tokens": "ids", "capacity": 64}
    manifest = {
        "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}},
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}},
        "state": {"kv": state},
        "steps": [{"generate": generate}],
    }
    return bundle(target, {"decoder": model(LENGTHS)}, manifest)


def test_lengths_come_from_the_mask(tmp_path: Path) -> None:
    """Two rows, the second one padded on the right, after four cached tokens."""
    with open_bundle(lengths(tmp_path / "x.genai")) as opened:
        found = generator(opened, "portable")
        graph = opened.graph(found.file)
    rewire(graph, found, "mask")
    onnx.checker.check_model(graph)
    assert [value.name for value in graph.graph.input] == ["ids", "mask", "p.0.k"]
    assert EVERY in [onnx.numpy_helper.to_array(one).tolist() for one in graph.graph.initializer]
    mask = np.array([[1] * 7, [1] * 5 + [0] * 2])
    feeds = {"ids": np.zeros((2, 3), np.int64), "mask": mask, "p.0.k": np.zeros((2, 1, 4, 1), np.float32)}
    logits, _ = ReferenceEvaluator(graph).run(None, feeds)
    assert logits.shape == (2, 3, 8)
    assert logits[:, 0, 0].tolist() == [6 + 7 + 4 + 64, 4 + 7 + 4 + 64]


def test_a_mask_is_added_where_the_graph_has_none(tmp_path: Path) -> None:
    folder = exported(Path(__file__).parents[3] / "examples" / "tiny-stories.genai", tmp_path / "x", "ort-genai")
    inputs = [value.name for value in onnx.load(folder / "model.onnx", load_external_data=False).graph.input]
    assert inputs[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert not {"seqlens_k", "total_sequence_length", "num_logits"} & {*inputs}


def test_an_adapter_is_fixed_into_the_graph(tmp_path: Path) -> None:
    """`project` of the specification's example: without an adapter it doubles, `swap` exchanges the two numbers."""
    source = Path(__file__).parents[3] / "spec" / "manifest.md"
    [recipe] = [text for text in re.findall(r"```yaml recipe\n(.*?)```", source.read_text(), re.S) if "swap:" in text]
    (tmp_path / "recipe.yaml").write_text(recipe)
    build(tmp_path / "recipe.yaml", tmp_path / "x.genai")
    for adapter, wanted in ((None, [[2.0, 4.0]]), ("swap", [[4.0, 2.0]]), ("first", [[3.0, 4.0]])):
        with open_bundle(tmp_path / "x.genai") as opened:
            planned = choose("folder").plan(opened, "auto", adapter)
        run = ReferenceEvaluator(planned.models["project.onnx"])
        assert run.input_names == ["x"]
        assert run.run(None, {"x": np.array([[1, 2]], np.float32)})[0].tolist() == wanted
        lost = [line for line in planned.lost if line.startswith("adapters: ")]
        assert [line.split("'")[1] for line in lost] == sorted({"first", "swap"} - {adapter})
    with open_bundle(tmp_path / "x.genai") as opened, pytest.raises(UsageError, match="no adapter 'other'"):
        choose("folder").plan(opened, "auto", "other")


RECURRENT = {"kv": {"graph": "decoder", "ports": {"p": "q"}, "update": "replace", "tokens": "ids"}}
OP = {"run": "zeros@1", "with": {"shape": [1], "type": "f32"}, "out": {"y": "nothing"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "the names of its caches do not count layers"),
        ({"state": RECURRENT | {"kv": RECURRENT["kv"] | {"capacity": 8, "update": "scatter"}}}, "kept by 'scatter'"),
    ],
)
def test_what_the_runtime_cannot_do_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        exported(counter(tmp_path / "x.genai", **changes), tmp_path / "out", "ort-genai")
    assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.genai"]


def test_another_pipeline_is_refused(tmp_path: Path) -> None:
    twice = "double (float[N] x) => (float[N] y) { y = Add (x, x) }"
    plain = bundle(
        tmp_path / "x.genai",
        {"double": twice},
        {
            "inputs": {"x": {"type": "f32", "dims": ["N"]}},
            "outputs": {"y": {"type": "f32", "dims": ["N"]}},
            "steps": [{"run": "double", "in": {"x": "x"}, "out": {"y": "y"}}, {"emit": {"y": "y"}}],
        },
    )
    with pytest.raises(UsageError, match="not just a prompt that one graph continues"):
        exported(plain, tmp_path / "out", "ort-genai")
