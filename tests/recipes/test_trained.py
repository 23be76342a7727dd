# SPDX-License-Identifier: Apache-2.0
"""Recipes around trained models of other kinds than language models, against results that were made without us."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import genai_runner

pytestmark = pytest.mark.shared

Built = Callable[[str], Path]
Floats = NDArray[np.float32]


def sound(path: Path) -> Floats:
    samples: Floats
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000
    return samples


def snr(actual: Floats, expected: Floats) -> float:
    """Decibels of the expected signal over its difference from the actual one."""
    wanted = expected.astype(np.float64)
    return float(10 * np.log10(np.sum(wanted**2) / np.sum((actual - wanted) ** 2)))


@pytest.mark.parametrize("name", ["gtcrn", "silero-vad", "mnist", "super-resolution"])
def test_recipes_stay_short(name: str) -> None:
    lines = (Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120


# -- GTCRN ------------------------------------------------------------------------------------------------------------


def test_gtcrn_denoises_as_upstream(built: Built, shared: Path) -> None:
    """Upstream made enh.wav with torch.istft, as the recipe does (71 dB: the 16 bits of the file are the difference),
    and enh_stream.wav with librosa's inverse and a window that is symmetric, not periodic (59 dB)."""
    folder = shared / "models" / "gtcrn"
    with genai_runner.load(built("gtcrn"), threads=1) as pipeline:
        clean = pipeline(audio=sound(folder / "mix.wav")).outputs["audio"]
    stream, whole = sound(folder / "enh_stream.wav"), sound(folder / "enh.wav")
    assert clean.shape == stream.shape == whole.shape
    assert snr(clean, stream) > 55
    assert snr(clean, whole) > 65


def test_gtcrn_streams(built: Built, shared: Path) -> None:
    """Frame 0 gives nothing, every other frame 256 samples; what comes early does not depend on what comes late."""
    mix = sound(shared / "models" / "gtcrn" / "mix.wav")[:16000]
    with genai_runner.load(built("gtcrn"), threads=1) as pipeline:
        pieces = list(pipeline.stream(audio=mix))
        half = pipeline(audio=mix[:8000]).outputs["audio"]
    assert [len(piece) for piece in pieces] == [0] + [256] * 62
    np.testing.assert_allclose(np.concatenate(pieces)[:7424], half[:7424], atol=1e-6)


# -- Silero VAD -------------------------------------------------------------------------------------------------------


def upstream_vad(model: Path, audio: Floats) -> Floats:
    """The model in a plain loop, fed as its authors' wrapper feeds it: 64 samples of context, zeros at both ends."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32), []
    for start in range(0, len(audio), 512):
        hop = audio[start : start + 512]
        fed = np.concatenate([context, np.pad(hop, (0, 512 - len(hop)))[None]], axis=1)
        output, state = session.run(None, {"input": fed, "state": state, "sr": np.array(16000)})
        context = fed[:, -64:]
        found.append(output[0])
    return np.stack(found)


@pytest.mark.parametrize("samples", [176000, 51200, 1000, 1])
def test_silero_vad(built: Built, shared: Path, samples: int) -> None:
    audio = sound(shared / "audio" / "jfk.wav")[:samples]
    with genai_runner.load(built("silero-vad"), threads=1) as pipeline:
        speech = pipeline(audio=audio).outputs["speech"]
    model = shared / "models" / "silero-vad" / "silero_vad_16k_op15.onnx"
    np.testing.assert_allclose(speech, upstream_vad(model, audio), atol=1e-5)


def test_silero_vad_finds_the_speech(built: Built, shared: Path) -> None:
    """Kennedy's sentence has four phrases; the pauses between them are heard, and some 20 dB less loud."""
    audio = sound(shared / "audio" / "jfk.wav")
    with genai_runner.load(built("silero-vad"), threads=1) as pipeline:
        speech = pipeline(audio=audio).outputs["speech"][:, 0] > 0.5
    seconds = np.arange(len(speech)) * 512 / 16000
    for start, end, spoken in [
        (0.45, 2.1, True), (2.4, 3.2, False), (3.35, 3.75, True), (4.5, 5.3, False),
        (5.5, 7.5, True), (7.7, 8.1, False), (8.3, 10.4, True),
    ]:  # fmt: skip
        assert (speech[(seconds >= start) & (seconds < end)] == spoken).all(), (start, end)
    frames = np.pad(audio, (0, len(speech) * 512 - len(audio))).reshape(-1, 512)
    loudness = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    assert loudness[speech].mean() - loudness[~speech].mean() > 15


def test_silero_vad_hears_nothing_in_noise(built: Built) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 16000).astype(np.float32)
    with genai_runner.load(built("silero-vad"), threads=1) as pipeline:
        assert pipeline(audio=noise).outputs["speech"].max() < 0.5


def test_silero_vad_on_the_reference(built: Built, shared: Path) -> None:
    audio = sound(shared / "audio" / "jfk.wav")[6000:11000]
    ways = [genai_runner.load(built("silero-vad"), backend) for backend in ("onnxruntime", "reference")]
    one, other = (way(audio=audio).outputs["speech"] for way in ways)
    np.testing.assert_allclose(one, other, atol=1e-4)


# -- MNIST ------------------------------------------------------------------------------------------------------------

Line = Sequence[tuple[int, int]]

DIGITS: dict[int, list[Line]] = {
    0: [[(14, 5), (9, 8), (8, 14), (9, 20), (14, 23), (19, 20), (20, 14), (19, 8), (14, 5)]],
    1: [[(14, 5), (14, 23)]],
    2: [[(8, 9), (10, 6), (14, 5), (18, 6), (19, 10), (15, 16), (8, 23), (20, 23)]],
    3: [[(9, 6), (14, 5), (18, 7), (18, 11), (13, 13), (18, 15), (19, 19), (15, 23), (9, 22)]],
    4: [[(11, 5), (8, 14), (20, 14)], [(17, 5), (17, 23)]],
    5: [[(19, 5), (10, 5), (10, 13), (15, 12), (19, 15), (19, 20), (14, 23), (9, 21)]],
    6: [[(17, 5), (11, 10), (9, 16), (10, 21), (14, 23), (18, 21), (18, 16), (14, 14), (10, 17)]],
    7: [[(8, 6), (20, 6), (15, 14), (12, 23)]],
    8: [[(14, 5), (10, 7), (10, 11), (14, 14), (18, 17), (18, 21), (14, 23), (10, 21), (10, 17), (14, 14), (18, 11),
         (18, 7), (14, 5)]],
    9: [[(19, 9), (15, 5), (11, 6), (10, 11), (14, 13), (18, 11), (19, 9), (18, 16), (15, 23)]],
}  # fmt: skip
"""Strokes on a grid of 28 by 28."""


def draw(lines: list[Line]) -> NDArray[np.uint8]:
    """u8[28,28]: light strokes of 2.4 pixels with round ends on a dark ground."""
    picture = Image.new("L", (280, 280))
    pen = ImageDraw.Draw(picture)
    for line in lines:
        pen.line([(x * 10, y * 10) for x, y in line], fill=255, width=24)
        for x, y in line:
            pen.ellipse([x * 10 - 12, y * 10 - 12, x * 10 + 12, y * 10 + 12], fill=255)
    return np.asarray(picture.resize((28, 28), Image.Resampling.LANCZOS))


def test_mnist_reads_drawn_digits(built: Built, backend: str) -> None:
    with genai_runner.load(built("mnist"), backend, threads=1) as pipeline:
        for digit, lines in DIGITS.items():
            outputs = pipeline(image=draw(lines)).outputs
            assert outputs["digit"].tolist() == [digit]
            assert outputs["logits"].argmax() == digit


def test_mnist_as_a_plain_session(built: Built, shared: Path) -> None:
    model = shared / "models" / "mnist" / "mnist.onnx"
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    image = draw(DIGITS[5])
    expected = session.run(None, {"Input3": image[None, None].astype(np.float32) / 255})[0]
    with genai_runner.load(built("mnist"), threads=1) as pipeline:
        np.testing.assert_allclose(pipeline(image=image).outputs["logits"], expected, rtol=1e-5)


# -- super resolution -------------------------------------------------------------------------------------------------


def compared(built: Built, shared: Path, backend: str) -> tuple[float, Any]:
    """PSNR in dB against the expected picture, and the largest difference of 255."""
    folder = shared / "models" / "super-resolution"
    expected = np.asarray(Image.open(folder / "test_superresolution.expected.png").convert("RGB")).astype(np.float64)
    with genai_runner.load(built("super-resolution"), backend, threads=1) as pipeline:
        pixels = pipeline(image=(folder / "test_superresolution.png").read_bytes()).outputs["pixels"]
    assert pixels.shape == expected.shape
    difference = np.abs(pixels - expected)
    return float(10 * np.log10(255**2 / np.mean(difference**2))), difference.max()


def test_super_resolution(built: Built, shared: Path, backend: str) -> None:
    """The expected picture was made by onnxruntime-extensions' pre- and post-processing (both resizes linear).

    Its first resize works on bytes in fixed point, the recipe's on floats: 2 % of the pixels that the network sees
    differ by one of 255. That gives 57.5 dB and differences up to 4. Rounding instead gives 50.0 dB, cubic colour 48.1,
    another first resize less than 40.
    """
    psnr, largest = compared(built, shared, backend)
    assert psnr > 55
    assert largest <= 6
