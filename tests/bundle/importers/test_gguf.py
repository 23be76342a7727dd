# SPDX-License-Identifier: Apache-2.0
"""GGUF files: their tensors against transformers' own reading and against the models they were written from, their
tokenizers against llama.cpp's published encodings, and a build of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import optional

pytestmark = pytest.mark.torch
torch = optional("torch", "torch")
optional("gguf", "torch")
optional("accelerate", "torch")

from tokenizers import Tokenizer  # noqa: E402

from bundle.importers.gguf_files import vocabulary, write_checkpoint, write_gguf  # noqa: E402
from genai_bundle.builder import source_model  # noqa: E402
from genai_bundle.builder.build import build  # noqa: E402
from genai_bundle.builder.options import BuildOptions  # noqa: E402
from genai_bundle.builder.storage.blocks import BlockForm, dequantise  # noqa: E402
from genai_bundle.builder.tensors import stored_array  # noqa: E402
from genai_bundle.bundle import open_bundle  # noqa: E402
from genai_bundle.errors import SourceError  # noqa: E402
from genai_bundle.importers.gguf import as_checkpoint  # noqa: E402
from genai_bundle.importers.gguf.config import read_config  # noqa: E402
from genai_bundle.importers.gguf.file import GgufFile, read_gguf  # noqa: E402
from genai_bundle.importers.gguf.text import write_text_files  # noqa: E402
from genai_runner import load  # noqa: E402

SIZES = {
    "vocab_size": 520, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip


def quietly(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def letters(shared: Path) -> dict[str, Any]:
    """The content of a small sentencepiece-like tokenizer.json."""
    text = (shared / "checkpoints" / "stories260K" / "tokenizer.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def random_model(model_type: str, **config: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SIZES | config)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1).add_(1.0 if parameter.dim() == 1 else 0.0)
    return model.eval()


def weights(model: Any) -> dict[str, Any]:
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


FAMILIES: dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "llama": ("llama", {}, {}),
    "llama with biases": ("llama", {"attention_bias": True, "tie_word_embeddings": True}, {}),
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", {}, {}),
    "qwen3moe": (
        "qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
        {"qwen3moe.expert_count": 4, "qwen3moe.expert_used_count": 2, "qwen3moe.expert_feed_forward_length": 32},
    ),
    "phi3": ("phi3", {}, {}),
    "gemma2": (
        "gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 8},
        {"gemma2.attention.sliding_window": 8, "gemma2.attn_logit_softcapping": 50.0,
         "gemma2.final_logit_softcapping": 30.0},
    ),
    "gemma3": (
        "gemma3_text", {"query_pre_attn_scalar": 16, "sliding_window": 8},
        {"gemma3.attention.sliding_window": 8, "gemma3.rope.freq_base": 1000000.0},
    ),
}  # fmt: skip


@pytest.mark.shared
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_the_one_that_was_written(family: str, letters: dict[str, Any], tmp_path: Path) -> None:
    """Config and tensors give back the original's logits; transformers reads the same from the file."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, config, more = FAMILIES[family]
    model = random_model(model_type, **config)
    architecture = family.split()[0]
    plain = {key: value for key, value in more.items() if not key.endswith("freq_base")}
    settings = SIZES | {"rms_norm_eps": model.config.rms_norm_eps} | config
    if len(plain) < len(more):
        settings["rope_theta"] = 1e6
    held = {name: array for name, array in weights(model).items() if not (name == "lm_head.weight" and "tie" in config)}
    path = write_gguf(tmp_path / "model.gguf", architecture, settings, held, letters, more=plain)
    (tmp_path / "folder").mkdir()
    checkpoint = as_checkpoint(read_gguf(path), tmp_path / "folder", lossy=False, tell=quietly)

    ours = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.path)).eval()
    state = {name: torch.from_numpy(np.array(stored_array(tensor))) for name, tensor in checkpoint.tensors.items()}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(ours(ids).logits, expected, rtol=0, atol=1e-5)
        theirs = AutoModelForCausalLM.from_pretrained(
            checkpoint.path, gguf_file="model.gguf", config=ours.config, dtype=torch.float32
        )
        torch.testing.assert_close(theirs(ids).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize("form", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_forms_are_decoded_as_transformers_decodes_them(form: str, letters: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = random_model("llama")
    settings = SIZES | {"rms_norm_eps": model.config.rms_norm_eps}
    path = write_gguf(tmp_path / "model.gguf", "llama", settings, weights(model), letters, form=form)
    told: list[str] = []
    (tmp_path / "folder").mkdir()
    checkpoint = as_checkpoint(read_gguf(path), tmp_path / "folder", lossy=False, tell=told.append)
    theirs = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, gguf_file="model.gguf", config=model.config, dtype=torch.float32
    )
    for name, parameter in theirs.named_parameters():
        ours = stored_array(checkpoint.tensors[name]).astype(np.float32)
        np.testing.assert_array_equal(ours, parameter.detach().numpy(), err_msg=name)
    plain = form in ("F16", "BF16")
    assert checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"].dtype == (form if plain else "F32")
    assert len(checkpoint.kept) == (16 if form in ("Q8_0", "Q4_0") else 0)
    for name, blocks in checkpoint.kept.items():
        assert blocks.form == BlockForm(4 if form == "Q4_0" else 8, 32, True)
        read = dequantise(blocks.rows(1, 4), blocks.form)
        np.testing.assert_array_equal(read, stored_array(checkpoint.tensors[name])[1:4], err_msg=name)
    assert told == ([f"decoded to float32: 16 {form}; --quantize makes them small again"] if form == "Q5_1" else [])


@pytest.mark.shared
def test_llama3_scaling_is_recovered_from_its_factors(letters: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip
    config = AutoConfig.for_model("llama", **(SIZES | {"head_dim": 64, "rope_parameters": scaling}))
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
    factors = (500000.0 ** (-np.arange(0, 64, 2) / 64) / inverse.numpy()).astype(np.float32)
    tensors = {"model.embed_tokens.weight": np.zeros((520, 64), np.float32)}
    path = write_gguf(
        tmp_path / "x.gguf", "llama", SIZES | {"head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 500000.0},
        tensors | {"rope_freqs.weight": factors}, letters,
    )  # fmt: skip
    found, _ = read_config(read_gguf(path), lossy=False)
    assert found["rope_theta"] == 500000.0
    assert found["rope_scaling"] == {key: value for key, value in scaling.items() if key != "rope_theta"}


@pytest.mark.shared
def test_a_build_gives_the_published_greedy_text(shared: Path, tmp_path: Path) -> None:
    optional("mobius", "torch")  # the quick exporter: tracing five layers takes a minute, and what is asked is the same
    source = shared / "checkpoints" / "stories260K"
    path = write_checkpoint(source, tmp_path / "stories.gguf", more={"general.license": "MIT"})
    told: list[str] = []
    build(path, tmp_path / "out.genai", BuildOptions(exporter="mobius"), told.append)
    assert told[0] == "this is a GGUF file"
    golden = json.loads((source / "golden_greedy.json").read_text(encoding="utf-8"))
    start, steps = len(golden["prompt_ids"]), 60
    with load(tmp_path / "out.genai") as pipeline:
        assert pipeline.manifest.license == "MIT"
        assert pipeline.manifest.name == "stories"
        assert pipeline("", max_tokens=steps).tokens == golden["greedy_ids"][start : start + steps]


@pytest.mark.shared
def test_a_build_by_the_first_exporter_says_what_the_original_says(letters: dict[str, Any], tmp_path: Path) -> None:
    """One layer: tracing takes as long as there are layers."""
    model = random_model("llama", num_hidden_layers=1)
    settings = SIZES | {"num_hidden_layers": 1, "rms_norm_eps": model.config.rms_norm_eps}
    path = write_gguf(tmp_path / "one.gguf", "llama", settings, weights(model), letters)
    build(path, tmp_path / "out.genai")
    with torch.no_grad():
        expected = model.generate(torch.tensor([[1]]), max_new_tokens=30, do_sample=False, eos_token_id=None)
    with load(tmp_path / "out.genai") as pipeline:
        assert pipeline.manifest.source["exporter"]["name"] == "transformers.exporters.OnnxExporter"
        assert pipeline("", max_tokens=30).tokens == expected[0, 1:].tolist()


@pytest.mark.shared
def test_files_are_read_by_transformers_while_they_fit(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's reading is proven by another's, in eight times the memory that a checkpoint folder's is."""
    path = write_checkpoint(shared / "checkpoints" / "stories260K", tmp_path / "x.gguf")
    (tmp_path / "folder").mkdir()
    checkpoint = as_checkpoint(read_gguf(path), tmp_path / "folder", lossy=False, tell=quietly)
    limit = source_model.LOADED_GGUF // source_model.LOADED * 200_000  # of a model of 1 MB
    monkeypatch.setattr(source_model, "LOADED", 200_000)
    monkeypatch.setattr(source_model, "LOADED_GGUF", limit)
    assert not source_model.is_large(checkpoint)
    assert source_model.is_large(replace(checkpoint, gguf=None))


@pytest.mark.shared
def test_blocks_keep_their_bits(shared: Path, tmp_path: Path) -> None:
    """The bundle is as small as the file, and says what transformers says of the file."""
    from transformers import AutoModelForCausalLM

    optional("mobius", "torch")  # the quick exporter
    source = shared / "checkpoints" / "stories260K"
    path = write_checkpoint(source, tmp_path / "stories.gguf", form="Q4_0")
    build(path, tmp_path / "out.genai", BuildOptions(exporter="mobius"))
    with open_bundle(tmp_path / "out.genai") as bundle:
        weights = sum(entry.size for member, entry in bundle.members.items() if member.startswith("weights/"))
    assert weights < 1.35 * path.stat().st_size
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model.generate(torch.tensor([[1]]), max_new_tokens=30, do_sample=False)[0, 1:].tolist()
    for variant in ("portable", "ort-cpu"):
        with load(tmp_path / "out.genai", variant=variant, precision="exact") as pipeline:
            assert pipeline("", max_tokens=30).tokens == expected


VOCABULARIES = {
    "gpt2": ("gpt-2", "gpt-2"), "llama-3": ("llama-bpe", "llama-bpe"),
    "smollm2": ("smollm", None), "llama-2": (None, "llama-spm"),
}  # fmt: skip
"""Folder below shared/data/tokenizers -> (split, name of llama.cpp's published encodings)."""


@pytest.mark.shared
@pytest.mark.parametrize("folder", VOCABULARIES)
def test_texts_are_encoded_as_llama_cpp_encodes_them(folder: str, shared: Path, tmp_path: Path) -> None:
    split, published = VOCABULARIES[folder]
    original = shared / "tokenizers" / folder / "tokenizer.json"
    document = json.loads(original.read_text(encoding="utf-8"))
    tokens, kinds = vocabulary(document, sentencepiece=split is None)
    metadata: dict[str, Any] = {"general.architecture": "llama", "tokenizer.ggml.tokens": tokens,
                                "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.pre": split or "default",
                                "tokenizer.ggml.model": "llama" if split is None else "gpt2"}  # fmt: skip
    if split is None:
        sentencepiece = optional("sentencepiece", "peers")
        model = sentencepiece.SentencePieceProcessor(model_file=str(original.with_name("tokenizer.model")))
        metadata["tokenizer.ggml.scores"] = [model.get_score(index) for index in range(model.get_piece_size())]
    else:
        merges = document["model"]["merges"]
        metadata["tokenizer.ggml.merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    write_text_files(GgufFile(tmp_path / "x.gguf", metadata, {}), tmp_path)
    made, theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), Tokenizer.from_file(str(original))
    golden = shared / "golden" / "llama.cpp-vocab"
    name = published or "gpt-2"
    raw = (golden / f"ggml-vocab-{name}.gguf.inp").read_text(encoding="utf-8")
    texts = raw.removesuffix("\n__ggml_vocab_test__\n").split("\n__ggml_vocab_test__\n")
    assert len(texts) > 40
    ours = [made.encode(text, add_special_tokens=False).ids for text in texts]
    assert ours == [theirs.encode(text, add_special_tokens=False).ids for text in texts]
    if published is not None:
        lines = (golden / f"ggml-vocab-{name}.gguf.out").read_text(encoding="utf-8").splitlines()
        assert ours == [[int(token) for token in line.split()] for line in lines]


@pytest.mark.shared
def test_all_ends_of_a_text_are_found(letters: dict[str, Any], tmp_path: Path) -> None:
    document = letters | {
        "added_tokens": [*letters["added_tokens"], {"id": 512, "content": "<|im_end|>", "special": True}]
    }
    tokens, kinds = vocabulary(document, sentencepiece=True)
    metadata = {"general.architecture": "llama", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
                "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.bos_token_id": 1,
                "general.sampling.temp": 0.7, "tokenizer.chat_template": "{{ messages }}"}  # fmt: skip
    write_text_files(GgufFile(tmp_path / "x.gguf", metadata, {}), tmp_path)
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert generation == {"eos_token_id": [2, 7, 512], "do_sample": True, "temperature": 0.7}
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["chat_template"] == "{{ messages }}"
    assert (settings["bos_token"], settings["eos_token"]) == ("<s>", "</s>")
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert made.encode("a<|im_end|>").ids[0] == 1
    assert made.encode("a<|im_end|>").ids[-1] == 512


WRONG: dict[str, tuple[Mapping[str, Any], str]] = {
    "unknown key": ({"llama.attention.clamp_kqv": 8.0}, r"not understood: llama\.attention\.clamp_kqv"),
    "unknown text key": ({"tokenizer.ggml.remove_extra_whitespaces": True}, r"not understood: tokenizer\.ggml\.remove"),
    "scaling": ({"llama.rope.scaling.type": "odd", "llama.rope.scaling.factor": 2.0}, r"rope\.scaling .* not underst"),
    "split": ({"split.count": 3}, "is one of 3 parts"),
    "adapter": ({"general.type": "adapter"}, "is a file of type 'adapter'"),
}


@pytest.mark.shared
@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_understood_stops_the_build(case: str, shared: Path, tmp_path: Path) -> None:
    more, message = WRONG[case]
    path = write_checkpoint(shared / "checkpoints" / "stories260K", tmp_path / "x.gguf", more=more)
    with pytest.raises(SourceError, match=message) as caught:
        build(path, tmp_path / "out.genai")
    assert caught.value.where == "x.gguf"
    assert not (tmp_path / "out.genai").exists()


@pytest.mark.shared
def test_dropped_keys_are_named(shared: Path, tmp_path: Path) -> None:
    more = {"llama.attention.clamp_kqv": 8.0, "tokenizer.ggml.remove_extra_whitespaces": True}
    path = write_checkpoint(shared / "checkpoints" / "stories260K", tmp_path / "x.gguf", more=more)
    told: list[str] = []
    (tmp_path / "folder").mkdir()
    as_checkpoint(read_gguf(path), tmp_path / "folder", lossy=True, tell=told.append)
    assert told == ["dropped: llama.attention.clamp_kqv, tokenizer.ggml.remove_extra_whitespaces"]


@pytest.mark.shared
def test_damaged_and_foreign_files(shared: Path, letters: dict[str, Any], tmp_path: Path) -> None:
    path = write_checkpoint(shared / "checkpoints" / "stories260K", tmp_path / "x.gguf")
    whole = path.read_bytes()
    for length in (6, 300, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError, match=r"x\.gguf: cannot be read"):
            build(path, tmp_path / "out.genai")
    other = write_gguf(tmp_path / "b.gguf", "bloom", SIZES | {"rms_norm_eps": 1e-5}, {}, letters)
    with pytest.raises(SourceError, match=r"general\.architecture is 'bloom', expected one of llama"):
        build(other, tmp_path / "out.genai")
