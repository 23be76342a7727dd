# SPDX-License-Identifier: Apache-2.0
"""Models of several graphs: what surrounds their own ones, against the libraries that define it, and two whole builds.

That every family is right is seen by tests/matrix; here is what a matrix of tiny random models cannot show.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from conftest import optional
from families import FAMILIES

pytestmark = pytest.mark.torch
torch = optional("torch", "torch")
transformers = optional("transformers", "torch")

from genai_bundle.builder import generation, parity_seq2seq  # noqa: E402
from genai_bundle.builder.build import build  # noqa: E402
from genai_bundle.builder.checkpoint import read_checkpoint  # noqa: E402
from genai_bundle.builder.closeness import LoadedGraph  # noqa: E402
from genai_bundle.builder.log_mel import Spectrogram, make_log_mel  # noqa: E402
from genai_bundle.builder.picture import picture, png  # noqa: E402
from genai_bundle.builder.pooling import read_pooling  # noqa: E402
from genai_bundle.builder.preprocess import make_preprocess, read_processor  # noqa: E402
from genai_bundle.builder.prove import prove_graphs  # noqa: E402
from genai_bundle.errors import BackendError, ProofError, SourceError  # noqa: E402
from genai_runner import load  # noqa: E402
from genai_runner.backends.base import LoadOptions, find_backend  # noqa: E402


def run(model: Any, **feeds: Any) -> Mapping[str, Any]:
    """All outputs of a graph on both engines, which have to agree."""
    raw = ir.to_proto(model).SerializeToString()
    names = [value.name for value in model.graph.outputs]
    first, second = (
        find_backend(name).load("graph", raw, {}, LoadOptions()).run(feeds, names)
        for name in ("onnxruntime", "reference")
    )
    for name in names:
        np.testing.assert_allclose(first[name], second[name], atol=1e-5)
    return first


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    for name in ("bart", "whisper", "bert"):
        FAMILIES[name](root / name)
    return root


@pytest.fixture
def bart(folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders / "bart", tmp_path / "bart"))


def settings(folder: Path, **changes: Any) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_forbidden_tokens_as_transformers_forbids_them(bart: Path) -> None:
    asked = {"min_length": 5, "suppress_tokens": [7, 9], "begin_suppress_tokens": [11], "bad_words_ids": [[3], [4, 5]]}
    settings(bart, **asked, num_beams=4)
    checkpoint = read_checkpoint(bart)
    start = generation.start_tokens(checkpoint)
    assert start == [0, 1]
    graph = generation._suppress(generation.rules(checkpoint, len(start)), 260)
    config = transformers.GenerationConfig(**(asked | {"bad_words_ids": [[3]]}), eos_token_id=2)
    model = transformers.BartForConditionalGeneration.from_pretrained(bart)
    config._eos_token_tensor = torch.tensor([2])
    processors = model._get_logits_processor(config, input_ids_seq_length=len(start), device="cpu")
    for step in range(5):
        scores = np.random.default_rng(step).normal(size=(1, 1, 260)).astype(np.float32)
        ids = torch.tensor([start + [50] * step])
        want = processors(ids, torch.from_numpy(scores[0])).numpy()
        got = run(graph, logits=scores, step=np.array(step))
        np.testing.assert_array_equal(got["scores"][0], want)
        assert got["next"] == step + 1
    assert generation.dropped(checkpoint) == {
        "generation_config.json": ["num_beams", "bad_words_ids of several tokens"]
    }


def test_settings_that_are_no_tokens_are_refused(bart: Path) -> None:
    settings(bart, suppress_tokens=[260])
    with pytest.raises(SourceError, match=r"suppress_tokens|bad_words_ids holds 260"):
        generation.rules(read_checkpoint(bart), 1)
    settings(bart, decoder_start_token_id="x")
    with pytest.raises(SourceError, match="expected the id of a token"):
        generation.start_tokens(read_checkpoint(bart))


@pytest.mark.parametrize("size", [(61, 90), (75, 200), (36, 36), (20, 500)])
@pytest.mark.parametrize("settings", [{}, {"resample": 2}, {"size": {"height": 40, "width": 50}}])
def test_pictures_as_pillow_resizes_them(size: tuple[int, int], settings: dict[str, Any], tmp_path: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    crop = {"height": 32, "width": 30}
    made = CLIPImageProcessorPil(**({"size": {"shortest_edge": 36}, "crop_size": crop} | settings))
    made.save_pretrained(tmp_path)
    processor, pixels = read_processor(tmp_path), picture(*size, seed=3)
    want = made(pixels, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    got = run(make_preprocess(processor), pixels=pixels)["pixel_values"]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pineapple.jpg", "wolves.jpg", "passport.png"])
def test_photographs_as_pillow_resizes_them(name: str, shared: Path, tmp_path: Path) -> None:
    image = optional("PIL.Image", "torch")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    made = CLIPImageProcessorPil()
    made.save_pretrained(tmp_path)
    processor = read_processor(tmp_path)
    photograph = image.open(shared / "images" / name).convert("RGB")
    want = made(photograph, return_tensors="np")["pixel_values"]
    got = run(make_preprocess(processor), pixels=np.asarray(photograph))["pixel_values"]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"resample": 1}, "resample is 1"),
        ({"do_pad": True}, "do_pad is set"),
        ({"do_center_crop": False}, "pictures keep different sizes"),
        ({"crop_size": {"height": 40, "width": 40}}, "is larger than size"),
        ({"image_std": None}, "image_std is None, expected three numbers"),
    ],
)
def test_pictures_made_ready_otherwise_are_refused(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    base = {"size": {"shortest_edge": 36}, "crop_size": 32, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(base | settings), encoding="utf-8")
    with pytest.raises(SourceError, match=reason):
        read_processor(tmp_path)


def test_a_picture_is_a_file() -> None:
    image = optional("PIL.Image", "torch")
    import io

    pixels = picture(5, 7, 0)
    np.testing.assert_array_equal(np.asarray(image.open(io.BytesIO(png(pixels)))), pixels)


@pytest.mark.shared
def test_speech_as_the_feature_extractor_takes_it(shared: Path) -> None:
    soundfile = optional("soundfile", "torch")
    audio, rate = soundfile.read(shared / "audio" / "jfk.wav", dtype="float32")
    extractor = transformers.WhisperFeatureExtractor()
    graph = make_log_mel(
        Spectrogram(rate, extractor.n_samples, extractor.n_fft, extractor.hop_length, extractor.mel_filters)
    )
    for sound in (audio, np.tile(audio, 3), audio[:4000] * 0.01, np.zeros(0, np.float32)):
        want = extractor(sound, sampling_rate=rate, return_tensors="np")["input_features"]
        np.testing.assert_allclose(run(graph, audio=sound)["input_features"], want, atol=1e-4)


@pytest.mark.parametrize(
    ("modules", "pooling", "reason"),
    [
        (["Transformer", "Pooling", "Dense"], {}, "lists Transformer, Pooling, Dense"),
        (["Transformer", "Pooling"], {"pooling_mode_lasttoken": True}, "pools by pooling_mode_lasttoken"),
        (["Transformer", "Pooling"], {}, "pools by nothing"),
    ],
)
def test_pooling_of_an_unknown_kind_is_refused(
    modules: list[str], pooling: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    entries = [{"idx": index, "path": kind, "type": f"x.{kind}"} for index, kind in enumerate(modules)]
    (tmp_path / "modules.json").write_text(json.dumps(entries), encoding="utf-8")
    (tmp_path / "Pooling").mkdir()
    (tmp_path / "Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    with pytest.raises(SourceError, match=reason):
        read_pooling(tmp_path)


def test_a_graph_without_its_mask_is_found(bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof looks at a padded batch, and at the second run on a filled cache."""
    check, seen = parity_seq2seq.check, list[Any]()
    monkeypatch.setattr(parity_seq2seq, "check", lambda graphs, found: seen.append(found) or check(graphs, found))
    build(bart, tmp_path / "bart.genai")
    with load(tmp_path / "bart.genai") as pipeline:
        test = pipeline.manifest.tests[-1]
        assert pipeline(**test.inputs).tokens == test.outputs["tokens"][0]
        assert "dropped" not in pipeline.manifest.source
        assert pipeline.manifest.generation["no_repeat_ngram_size"] == 3
        assert test.inputs["no_repeat_ngram_size"] == 0
        reference = transformers.BartForConditionalGeneration.from_pretrained(bart)
        prompt = torch.tensor([pipeline.encode("What comes more than once?")])
        expected = reference.generate(prompt, num_beams=1, do_sample=False, max_new_tokens=24)[0].tolist()
        found = pipeline("What comes more than once?", max_tokens=23, temperature=0).tokens  # the first is given
        assert [0, 1, *found] == expected[: len(found) + 2]
    answers = seen[0]

    def spoil(graphs: Mapping[str, LoadedGraph], port: str) -> Mapping[str, LoadedGraph]:
        def blind(graph: LoadedGraph) -> LoadedGraph:
            def execute(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
                return graph.execute({k: np.ones_like(v) if k == port else v for k, v in feeds.items()})

            return LoadedGraph(graph.dims, graph.outputs, execute)

        return {name: blind(graph) for name, graph in graphs.items()}

    for port, where in (("attention_mask", "last_hidden_state"), ("encoder_attention_mask", "logits")):
        with pytest.raises(ProofError, match="padded batch") as caught:
            prove_graphs(tmp_path / "bart.genai", lambda graphs, port=port: check(spoil(graphs, port), answers))
        assert where in str(caught.value.where)


@pytest.mark.shared
def test_speech_with_a_trained_tokenizer(folders: Path, shared: Path, tmp_path: Path) -> None:
    """Languages by code and by name, an unknown one, and the tokens of transformers for a recording."""
    soundfile = optional("soundfile", "torch")
    folder = Path(shutil.copytree(folders / "whisper", tmp_path / "whisper"))
    ids = {"decoder_start_token_id": 50258, "eos_token_id": 50257, "pad_token_id": 50257, "bos_token_id": 50257}
    old = transformers.WhisperConfig.from_pretrained(folder).to_dict()
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**(old | ids | {"vocab_size": 51865}))
    )
    torch.manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared / "tokenizers" / "whisper-tiny" / name, folder / name)
    asked = {
        "lang_to_id": {"<|en|>": 50259, "<|de|>": 50261, "<|haw|>": 50352}, "no_timestamps_token_id": 50363,
        "task_to_id": {"transcribe": 50359, "translate": 50358}, "suppress_tokens": [1, 2], "is_multilingual": True,
        "begin_suppress_tokens": [220, 50257],
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(asked | ids), encoding="utf-8")
    build(folder, tmp_path / "whisper.genai")
    audio, rate = soundfile.read(shared / "audio" / "jfk.wav", dtype="float32")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    features = extractor(audio, sampling_rate=rate, return_tensors="pt")["input_features"]

    def expected(**options: Any) -> list[int]:
        found = model.generate(features, do_sample=False, num_beams=1, max_new_tokens=12, **options)[0].tolist()
        return list(found[-12:])

    with load(tmp_path / "whisper.genai") as pipeline:
        for language in ("<|haw|>", "haw", "hawaiian", "Hawaiian"):
            heard = pipeline(audio=audio, language=language, task="translate", max_tokens=12)
            assert heard.tokens == expected(language="haw", task="translate")
        assert pipeline(audio=audio, max_tokens=12).tokens == expected(task="transcribe")
        with pytest.raises(BackendError, match="words"):
            pipeline(audio=audio, language="Latin", max_tokens=2)
