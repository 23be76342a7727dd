# SPDX-License-Identifier: Apache-2.0
"""Speech models in the layouts of Optimum and ONNX Runtime GenAI: sound in, tokens out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from bundle.importers import tiny
from cli.samples import tokenizer
from genai_bundle.builder.build import build
from genai_bundle.builder.options import BuildOptions
from genai_bundle.errors import SourceError
from genai_bundle.importers.speech import mel_filters, read_hearing
from genai_runner import load

RATE, BANDS, FRAMES = 16_000, 16, 100
PREPROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": RATE, "n_fft": 400, "hop_length": 160,
    "chunk_length": 1, "feature_size": BANDS, "padding_side": "right", "padding_value": 0.0, "processor_class": "x",
}  # fmt: skip


def noise(seconds: float, rate: int = RATE) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=int(seconds * rate)).astype(np.float32) * 0.1


def encoder() -> onnx.ModelProto:
    text = f"""
    encoder (float[batch,{BANDS},{FRAMES}] input_features) => (float[batch,{FRAMES},{tiny.WIDTH}] last_hidden_state)
    {{ turned = Transpose <perm = [0, 2, 1]> (input_features)  last_hidden_state = MatMul (turned, weight) }}"""
    return tiny.model(text, tiny.weights(9, weight=(BANDS, tiny.WIDTH)))


def decoder() -> onnx.ModelProto:
    """The merged one, without the encoder's mask, as exporters leave it out for speech."""
    found = tiny.merged_decoder()
    [mask] = [value for value in found.graph.input if value.name == "encoder_attention_mask"]
    found.graph.input.remove(mask)
    ones = onnx.numpy_helper.from_array(np.ones((1, FRAMES), np.int64), "encoder_attention_mask")
    found.graph.initializer.append(ones)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "speech"
    path.mkdir()
    onnx.save(encoder(), path / "encoder_model.onnx")
    onnx.save(decoder(), path / "decoder_model_merged.onnx")
    (path / "tokenizer.json").write_bytes(tokenizer())
    tiny.write_json(path / "preprocessor_config.json", PREPROCESSOR)
    config = {"vocab_size": tiny.WORDS, "max_target_positions": 40, "eos_token_id": 39, "decoder_start_token_id": 8}
    tiny.write_json(path / "config.json", config)
    return path


def answered(features: NDArray[np.float32], start: list[int], banned: list[int], begin: list[int]) -> list[int]:
    run = ort.InferenceSession(encoder().SerializeToString(), providers=["CPUExecutionProvider"])
    [encoded] = run.run(None, {"input_features": features})
    run, feed, found = (
        ort.InferenceSession(decoder().SerializeToString(), providers=["CPUExecutionProvider"]),
        start,
        [],
    )
    kinds = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")
    names = [f"past_key_values.0.{kind}" for kind in kinds]
    past = {name: np.zeros((1, 1, 0, tiny.WIDTH), np.float32) for name in names}
    while len(found) < 15 and found[-1:] != [39]:
        given = {"input_ids": np.array([feed]), "encoder_hidden_states": encoded}
        logits, *held = run.run(None, {**given, **past, "use_cache_branch": np.array([bool(found)])})
        past |= dict(zip(names[:2] if found else names, held, strict=False))
        scores = logits[0, -1].copy()
        scores[[*banned, *([] if found else begin)]] = -np.inf
        feed = [int(scores.argmax())]
        found += feed
    return found


def test_sound_goes_through_spectrogram_encoder_and_decoder(folder: Path, tmp_path: Path) -> None:
    """Forced ids are part of the start; some ids are never drawn, some not as the first."""
    features = read_hearing(folder).features(noise(0.6))
    first = answered(features, [8, 3, 4], [], [])[0]
    told: dict[str, Any] = {
        "forced_decoder_ids": [[1, 3], [2, 4]], "begin_suppress_tokens": [first], "suppress_tokens": [20],
        "lang_to_id": {"<|en|>": 3}, "return_timestamps": False,
    }  # fmt: skip
    tiny.write_json(folder / "generation_config.json", told)
    build(folder, tmp_path / "x.genai")
    with load(tmp_path / "x.genai", threads=1) as pipeline:
        assert pipeline.manifest.task == "automatic-speech-recognition"
        assert pipeline.manifest.inputs["audio"].rate == RATE
        tokens = pipeline(audio=noise(0.6), max_tokens=15).outputs["tokens"][0].tolist()
        other = pipeline(audio=noise(0.6), start=[[8]], max_tokens=15).outputs["tokens"][0].tolist()
    assert tokens == answered(features, [8, 3, 4], [20], [first])
    assert other == answered(features, [8], [20], [first])
    assert tokens[0] != first


def test_a_language_that_has_to_be_found_out_is_not_understood(folder: Path, tmp_path: Path) -> None:
    tiny.write_json(folder / "generation_config.json", {"forced_decoder_ids": [[1, None], [2, 4]]})
    with pytest.raises(SourceError, match="forced_decoder_ids"):
        build(folder, tmp_path / "x.genai")
    build(folder, tmp_path / "x.genai", BuildOptions(allow_lossy=True))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("do_normalize", True, "do_normalize = True"),
        ("feature_extractor_type", "Other", "feature_extractor_type = 'Other'"),
        ("hop_length", 300, "whole numbers of frames"),
    ],
)
def test_other_front_ends_are_refused(folder: Path, tmp_path: Path, key: str, value: Any, words: str) -> None:
    tiny.write_json(folder / "preprocessor_config.json", PREPROCESSOR | {key: value})
    with pytest.raises(SourceError) as caught:
        build(folder, tmp_path / "x.genai")
    assert words in str(caught.value)


@pytest.mark.shared
@pytest.mark.parametrize("bands", [80, 128])
def test_mel_filters_are_those_that_whisper_came_with(shared: Path, bands: int) -> None:
    with np.load(shared / "audio" / "mel_filters.npz") as published:
        assert np.allclose(mel_filters(16_000, 400, bands).T, published[f"mel_{bands}"], atol=1e-7)


@pytest.mark.torch
def test_the_spectrogram_is_that_of_transformers(folder: Path) -> None:
    from transformers import WhisperFeatureExtractor

    made = WhisperFeatureExtractor(feature_size=BANDS, sampling_rate=RATE, hop_length=160, chunk_length=1, n_fft=400)
    expected = made(noise(0.6), sampling_rate=RATE, return_tensors="np").input_features
    assert np.allclose(read_hearing(folder).features(noise(0.6)), expected, atol=1e-4)


@pytest.mark.peers
@pytest.mark.torch
@pytest.mark.shared
def test_what_the_peer_s_builder_writes_of_whisper(shared: Path, tmp_path: Path) -> None:
    import onnxruntime_genai as runtime
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.manual_seed(3)
    sizes = {f"{side}_{key}": value for side in ("encoder", "decoder")
             for key, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    ids = {"decoder_start_token_id": 3, "eos_token_id": 2, "bos_token_id": 3, "pad_token_id": 2}
    model = WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=512, d_model=32, max_target_positions=64, **sizes, **ids)
    )
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.generation_config.suppress_tokens = model.generation_config.begin_suppress_tokens = None
    source, folder = tmp_path / "checkpoint", tmp_path / "folder"
    model.save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared / "checkpoints" / "stories260K" / name, source / name)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "tiny", "-i", source, "-o", folder]
    subprocess.run([*command, "-p", "fp32", "-e", "cpu", "-c", tmp_path / "cache"], check=True, capture_output=True)
    build(folder, tmp_path / "x.genai")
    audio = noise(1.3, 16_000)
    with load(tmp_path / "x.genai", threads=1) as pipeline:
        tokens = pipeline(audio=audio, max_tokens=12).outputs["tokens"][0].tolist()
    peer = runtime.Model(str(folder))
    params = runtime.GeneratorParams(peer)
    params.set_search_options(max_length=13, do_sample=False)
    generator = runtime.Generator(peer, params)
    heard = WhisperFeatureExtractor()(audio, sampling_rate=16_000, return_tensors="np").input_features
    heard = np.ascontiguousarray(heard, np.float32)  # held here: the runtime keeps the address, not the array
    generator.set_model_input("audio_features", heard)
    generator.append_tokens(np.array([[3]], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert tokens[:12] == [int(token) for token in generator.get_sequence(0)][1:]
