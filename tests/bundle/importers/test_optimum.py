# SPDX-License-Identifier: Apache-2.0
"""Folders of Optimum and transformers.js, compared with onnxruntime driven as those libraries drive it.

Their layouts were taken from folders that optimum-onnx 0.1.0 wrote of Llama, GPT-2, T5, BART, Marian and BERT, whose
bundles gave the tokens of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bundle.importers import tiny
from cli.samples import tokenizer
from genai_bundle.builder.build import build
from genai_bundle.builder.options import BuildOptions
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import SourceError, UsageError
from genai_bundle.importers import optimum
from genai_runner import load

CONFIG = {"model_type": "llama", "vocab_size": tiny.WORDS, "max_position_embeddings": 64, "eos_token_id": 39}
TEXTS = {"one two three": [1, 2, 3], "seven": [7], "five four three two one six": [5, 4, 3, 2, 1, 6]}
STEPS = 20


def session(graph: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def write(folder: Path, graphs: Mapping[str, onnx.ModelProto], words: bool = True, **config: Any) -> Path:
    (folder / "onnx").mkdir(parents=True)
    tiny.write_json(folder / "config.json", CONFIG | config)
    for name, graph in graphs.items():
        onnx.save(graph, folder / "onnx" / f"{name}.onnx")
    if words:
        (folder / "tokenizer.json").write_bytes(tokenizer())
    return folder


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    return write(tmp_path / "decoder", {"model": tiny.decoder()})


@pytest.fixture
def both(tmp_path: Path) -> Path:
    graphs = {"encoder_model": tiny.encoder(), "decoder_model_merged": tiny.merged_decoder()}
    return write(tmp_path / "both", graphs, is_encoder_decoder=True, decoder_start_token_id=8)


def imported(folder: Path, **options: Any) -> Path:
    target = folder.parent / f"{folder.name}.genai"
    build(folder, target, BuildOptions(overwrite=True, **options))
    return target


def ours(bundle: Path, text: str, **options: Any) -> list[int]:
    with load(bundle, threads=1) as pipeline:
        tokens: list[int] = pipeline(prompt=text, max_tokens=STEPS, **options).outputs["tokens"][0].tolist()
    return tokens


def alone(graph: onnx.ModelProto, ids: Sequence[int], banned: Sequence[int] = (), eos: int = 39) -> list[int]:
    """The decoder, its cache handed on by hand."""
    run, feed, length = session(graph), list(ids), 0
    past = {name: np.zeros((1, 1, 0, tiny.WIDTH), np.float32) for name in tiny.PAST}
    found: list[int] = []
    while len(found) < STEPS and found[-1:] != [eos]:
        total = length + len(feed)
        given = {"input_ids": [feed], "attention_mask": [[1] * total], "position_ids": [list(range(length, total))]}
        logits, *held = run.run(None, {**{name: np.array(value) for name, value in given.items()}, **past})
        past, length = dict(zip(tiny.PAST, held, strict=True)), total
        scores = logits[0, -1].copy()
        scores[list(banned)] = -np.inf
        feed = [int(scores.argmax())]
        found += feed
    return found


def answered(ids: Sequence[int], start: Sequence[int]) -> list[int]:
    """Encoder and merged decoder: the cross cache is the first run's, and the branch is asked for by hand."""
    mask = np.ones((1, len(ids)), np.int64)
    [encoded] = session(tiny.encoder()).run(None, {"input_ids": np.array([ids]), "attention_mask": mask})
    run, feed, found = session(tiny.merged_decoder()), list(start), []
    names = [
        name
        for one in ("decoder", "encoder")
        for name in (f"past_key_values.0.{one}.key", f"past_key_values.0.{one}.value")
    ]
    past = {name: np.zeros((1, 1, 0, tiny.WIDTH), np.float32) for name in names}
    while len(found) < STEPS and found[-1:] != [39]:
        given = {"input_ids": np.array([feed]), "encoder_attention_mask": mask, "encoder_hidden_states": encoded}
        logits, *held = run.run(None, {**given, **past, "use_cache_branch": np.array([bool(found)])})
        past |= dict(zip(names[:2] if found else names, held, strict=False))
        feed = [int(logits[0, -1].argmax())]
        found += feed
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_a_decoder_alone(decoder: Path, text: str) -> None:
    assert ours(imported(decoder), text) == alone(tiny.decoder(), TEXTS[text])


@pytest.mark.parametrize("forced", [None, 5])
def test_a_merged_decoder_behind_an_encoder(both: Path, forced: int | None) -> None:
    """The cross cache is made once; a forced first token is part of what an answer begins with."""
    if forced:
        tiny.write_json(both / "generation_config.json", {"forced_bos_token_id": forced, "num_beams": 4})
    bundle = imported(both)
    for text, ids in TEXTS.items():
        assert ours(bundle, text) == answered(ids, [8] if forced is None else [8, forced])
    with open_bundle(bundle) as found:
        state = found.manifest.state
        assert (state["self"].update, state["cross"].update) == ("append", "once")
        assert found.manifest.task == "text-to-text"


def test_forbidden_tokens_are_never_drawn(decoder: Path) -> None:
    [first, *_] = alone(tiny.decoder(), [1, 2, 3])
    banned = [first, 30]
    tiny.write_json(
        decoder / "generation_config.json", {"bad_words_ids": [[first]], "suppress_tokens": [30], "max_length": 20}
    )
    bundle = imported(decoder)
    for text, ids in TEXTS.items():
        assert ours(bundle, text) == alone(tiny.decoder(), ids, banned)


def test_weights_in_several_files_and_folders_of_links(decoder: Path, tmp_path: Path) -> None:
    """As in a hub's cache, where all files are links to blobs."""
    tiny.scatter_weights(tiny.decoder(), decoder / "onnx" / "model.onnx", 3)
    linked = tmp_path / "linked"
    for file in [*decoder.glob("*.json"), *(decoder / "onnx").iterdir()]:
        link = linked / file.relative_to(decoder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    assert len(list((linked / "onnx").iterdir())) == 4
    assert ours(imported(linked), "one two") == alone(tiny.decoder(), [1, 2])
    with open_bundle(imported(linked)) as bundle:
        assert "onnx/model.onnx_data_2" in bundle.manifest.source["files"]


def test_one_of_several_forms_is_chosen(decoder: Path, tmp_path: Path) -> None:
    other = tiny.decoder()
    table = next(tensor for tensor in other.graph.initializer if tensor.name == "table")
    table.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(table), "table"))
    onnx.save(other, decoder / "onnx" / "model_q4.onnx")
    assert ours(imported(decoder), "one") == alone(tiny.decoder(), [1])
    assert ours(imported(decoder, dtype_suffix="q4"), "one") == alone(other, [1])
    with pytest.raises(SourceError, match=r"there is no model_fp16\.onnx.*--dtype-suffix: none, q4"):
        imported(decoder, dtype_suffix="fp16")
    (decoder / "onnx" / "model.onnx").unlink()
    assert ours(imported(decoder), "one") == alone(other, [1])
    onnx.save(other, decoder / "onnx" / "model_int8.onnx")
    with pytest.raises(SourceError, match=r"there is no model\.onnx.*int8, q4"):
        imported(decoder)


def test_an_encoder_gives_a_vector_for_each_token(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder", {"model": tiny.encoder(types=True)})
    ids = np.array([[1, 2, 3]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    [expected] = session(tiny.encoder(types=True)).run(None, feeds)
    with load(imported(folder), threads=1) as pipeline:
        found = pipeline(text="one two three").outputs["embedding"]
    assert np.allclose(found, expected, atol=1e-6)


def test_without_a_tokenizer_ids_go_in_and_out_and_the_ending_id_ends(tmp_path: Path) -> None:
    expected = alone(tiny.decoder(), [1, 2, 3], eos=-1)
    folder = write(tmp_path / "ids", {"model": tiny.decoder()}, words=False, eos_token_id=[expected[4], 500])
    with load(imported(folder), threads=1) as pipeline:
        tokens = pipeline(ids=[[1, 2, 3]], max_tokens=STEPS).outputs["tokens"][0].tolist()
        apart = pipeline(ids=[[1, 2, 3]], max_tokens=5, presence_penalty=1e4).outputs["tokens"][0].tolist()
    assert tokens == expected[: expected.index(expected[4]) + 1]
    assert len(set(apart)) == len(apart)  # the loop says which ids are the answer's


def test_what_generation_is_told_and_cannot_do_stops_the_build(decoder: Path) -> None:
    told = {"epsilon_cutoff": 0.3, "novel": 1, "num_beams": 4, "temperature": None, "min_length": 0}
    tiny.write_json(decoder / "generation_config.json", told)
    with pytest.raises(SourceError) as caught:
        imported(decoder)
    assert "generation_config.json: epsilon_cutoff = 0.3, novel = 1." in str(caught.value)
    with open_bundle(imported(decoder, allow_lossy=True)) as bundle:
        assert bundle.manifest.source["dropped"] == {"generation_config.json": ["epsilon_cutoff", "novel"]}


def test_what_cannot_be_imported_is_refused(decoder: Path, both: Path) -> None:
    (both / "onnx" / "decoder_model_merged.onnx").rename(both / "onnx" / "decoder_model.onnx")
    with pytest.raises(SourceError, match=r"decoder_model_merged\.onnx is missing"):
        imported(both)
    onnx.save(tiny.decoder(past=("k_0", "v_0")), decoder / "onnx" / "model.onnx")
    with pytest.raises(SourceError, match=r"model\.onnx: has no cache ports past_key_values\.\{n\}\.key"):
        imported(decoder)
    graph = tiny.decoder()
    graph.graph.input[0].name = "tokens"
    for node in graph.graph.node:
        node.input[:] = ["tokens" if name == "input_ids" else name for name in node.input]
    onnx.save(graph, decoder / "onnx" / "model.onnx")
    with pytest.raises(SourceError, match=r"model\.onnx: its input 'tokens' is missing or has a role"):
        imported(decoder)
    tiny.write_json(decoder / "config.json", CONFIG | {"vocab_size": 3})
    with pytest.raises(SourceError, match="holds the token id 7, but the model knows 3"):
        imported(decoder)


def test_a_chat_template_takes_messages(decoder: Path) -> None:
    (decoder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }} {% endfor %}seven{# [TOOL_CALLS] #}"
    )
    with load(imported(decoder), threads=1) as pipeline:
        assert pipeline.manifest.text is not None
        assert pipeline.manifest.text.reply == {"calls": {"open": "[TOOL_CALLS]"}}
        messages = [{"role": "user", "content": "one two"}]
        tokens = pipeline(messages=messages, max_tokens=STEPS).outputs["tokens"][0].tolist()
        again = pipeline(prompt="one two seven", max_tokens=STEPS).outputs["tokens"][0].tolist()
    assert tokens == again == alone(tiny.decoder(), [1, 2, 7])


def test_options_for_checkpoints_are_refused(decoder: Path) -> None:
    with pytest.raises(UsageError, match="--quantize works on checkpoints"):
        imported(decoder, quantize="int4")


@pytest.mark.parametrize("file", ["model.safetensors", "genai_config.json", "modules.json", "inference_metadata.yaml"])
def test_other_layouts_are_left_to_their_own(decoder: Path, file: str) -> None:
    assert optimum.recognises(decoder)
    (decoder / file).write_text("{}")
    assert not optimum.recognises(decoder)
