# SPDX-License-Identifier: Apache-2.0
"""The front of speech models: sound to a log-mel spectrogram, as Whisper's feature extractors describe it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.errors import SourceError, UsageError
from genai_bundle.importers.foreign import Section, read_section
from genai_bundle.importers.graphs import SourceGraph
from genai_bundle.importers.plain import Array
from genai_bundle.writer import Source

if TYPE_CHECKING:
    from genai_bundle.builder.log_mel import Spectrogram

HUGGING_FACE, RUNTIME = "preprocessor_config.json", "audio_processor_config.json"

SECONDS = (0.7, 1.9)
"""Lengths of the golden sounds."""


@dataclass(frozen=True)
class Hearing:
    """`graph`: `audio` to `input_features`. sections: the configuration that was read, to be settled."""

    graph: SourceGraph
    spectrogram: Spectrogram
    sections: tuple[Section, ...]

    def inputs(self) -> dict[str, Any]:
        about = "Speech; what is too long is cut off."
        return {"audio": {"type": "audio", "rate": self.spectrogram.rate, "dims": ["N"], "description": about}}

    def step(self) -> dict[str, Any]:
        return {"run": "log_mel", "in": {"audio": "audio"}, "out": {"input_features": "features"}}

    def prompts(self) -> list[tuple[dict[str, Any], NDArray[np.float32]]]:
        """Inputs of the bundle, with the sounds that they stand for."""
        from genai_bundle.builder.speech import sound

        rate = self.spectrogram.rate
        sounds = [sound(int(seconds * rate), rate, seed) for seed, seconds in enumerate(SECONDS)]
        return [({"audio": {"file": f"tests/sound-{number}.npy"}}, one) for number, one in enumerate(sounds)]

    def members(self) -> dict[str, Source]:
        found: dict[str, Source] = {}
        for inputs, one in self.prompts():
            file = io.BytesIO()
            np.save(file, one)
            found[inputs["audio"]["file"]] = file.getvalue()
        return found

    def features(self, audio: NDArray[np.float32]) -> Array:
        """The spectrogram by NumPy's own Fourier transform, f32[1,bands,frames]: the plain form of the graph."""
        one = self.spectrogram
        cut = np.pad(audio[: one.samples], (0, max(0, one.samples - len(audio)))).astype(np.float64)
        wide = np.pad(cut, one.size // 2, mode="reflect")
        window = np.hanning(one.size + 1)[:-1]
        starts = range(0, one.samples, one.hop)
        power = np.stack([np.abs(np.fft.rfft(wide[at : at + one.size] * window)) ** 2 for at in starts])
        decades = np.log10(np.maximum(power @ one.filters, 1e-10))
        scaled: Array = (np.maximum(decades, decades.max() - 8) + 4) / 4
        return scaled.T[None].astype(np.float32)


def read_hearing(path: Path) -> Hearing:
    """From the folder's configuration of its feature extractor. Raises SourceError for one of another kind."""
    if find_spec("onnx_ir") is None:
        raise UsageError("speech needs onnx-ir", hint='Install it with: pip install "genai-bundle[build]"')
    import onnx_ir as ir

    from genai_bundle.builder.log_mel import Spectrogram, make_log_mel

    section, rate, size, hop, seconds, bands = _runtime(path) if (path / RUNTIME).is_file() else _hugging_face(path)
    if not all((rate, size, hop, seconds, bands)) or (seconds * rate) % hop or size % 2:
        raise SourceError("does not describe a spectrogram with whole numbers of frames", where=section.file)
    found = Spectrogram(rate, seconds * rate, size, hop, mel_filters(rate, size, bands))
    return Hearing(SourceGraph("log_mel", ir.to_proto(make_log_mel(found)), host=True), found, (section,))


def _hugging_face(path: Path) -> tuple[Section, int, int, int, int, int]:
    section = read_section(path / HUGGING_FACE, required=True)
    assert section is not None
    section.only("feature_extractor_type", "WhisperFeatureExtractor")
    section.only("do_normalize", False)
    section.only("dither", 0, 0.0)
    section.only("padding_value", 0, 0.0)
    section.only("padding_side", "right")
    section.ignore("processor_class", "return_attention_mask", "n_samples", "nb_max_frames", "mel_filters")
    names = ("sampling_rate", "n_fft", "hop_length", "chunk_length", "feature_size")
    rate, size, hop, seconds, bands = (
        section.count(name, default) for name, default in zip(names, DEFAULTS, strict=True)
    )
    return section, rate, size, hop, seconds, bands


DEFAULTS = (16_000, 400, 160, 30, 80)
"""What transformers' WhisperFeatureExtractor has where its file is silent."""


def _runtime(path: Path) -> tuple[Section, int, int, int, int, int]:
    section = read_section(path / RUNTIME, required=True)
    assert section is not None
    found: dict[str, int] = {}
    for step in section.section("feature_extraction").sections("sequence"):
        operation = step.section("operation")
        operation.ignore("name")
        kind, attributes = operation.text("type"), operation.section("attrs")
        attributes.ignore("_comment")
        if kind not in ("AudioDecoder", "STFTNorm", "LogMelSpectrum"):
            raise operation.wrong("type", "AudioDecoder, STFTNorm or LogMelSpectrum")
        found |= {name: attributes.count(name) for name in attributes.names() if name != "_comment"}
    if found.get("frame_length", found.get("n_fft")) != found.get("n_fft"):
        raise SourceError("frame_length is not n_fft", where=section.file)
    size, hop, seconds, bands = (found.get(name, 0) for name in ("n_fft", "hop_length", "chunk_size", "n_mel"))
    return section, DEFAULTS[0], size, hop, seconds, bands


HIGHEST = 8000.0
"""Where the last band ends, in Hz, whatever the rate is."""


def mel_filters(rate: int, size: int, bands: int) -> NDArray[np.float64]:
    """f64[bins,bands]: triangles on Slaney's scale, linear to 1 kHz and logarithmic above, each of area 1."""

    def mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
        high = 15 + 27 * np.log(np.maximum(hertz, 1e-9) / 1000) / np.log(6.4)
        return np.where(hertz < 1000, hertz * 3 / 200, high)

    def hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))

    top = mel(np.array([HIGHEST]))[0]
    corners = hertz(np.linspace(0, top, bands + 2))
    bins = np.linspace(0, rate / 2, size // 2 + 1)
    rising = (bins[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - bins[:, None]) / np.diff(corners)[1:]
    found: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling)) * 2 / (corners[2:] - corners[:-2])
    return found
