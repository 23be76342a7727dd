# SPDX-License-Identifier: Apache-2.0
"""The grammar by example: recipes of every kind of pipeline, over graphs that compute what one can follow by hand.

Each runs on two engines, and `generate` both by the decode engine and literally as the loop that defines it.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import genai_runner
from genai_bundle.errors import UsageError

Built = Callable[[str], Path]
Open = Callable[..., Any]

VOCABULARY = Path(__file__).parent / "examples" / "tokenizer.json"
WORDS = list(json.loads(VOCABULARY.read_text(encoding="utf-8"))["model"]["vocab"])
EOS = 2


def encode(text: str) -> list[int]:
    return [WORDS.index("<s>"), *(WORDS.index(word) for word in text.split())]


def greedy(next_id: Callable[[list[int]], int], ids: Sequence[int], most: int, eos: int | None = EOS) -> list[int]:
    """New ids when each is `next_id` of all before it; the ending one is among them."""
    new: list[int] = []
    while len(new) < most and (not new or new[-1] != eos):
        new.append(next_id([*ids, *new]))
    return new


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# -- a chat model -----------------------------------------------------------------------------------------------------


def chat_next(ids: list[int]) -> int:
    return sum(place * token for place, token in enumerate(ids)) % 16


def test_chat_by_hand(pipeline: Open) -> None:
    """<s> hello world: 0*1 + 1*3 + 2*4 = 11; then 11 + 3*11 = 44 = 12 mod 16; then 44 + 4*12 = 92 = 12 mod 16."""
    result = pipeline("chat")("hello world", max_tokens=3)
    assert result.tokens == [11, 12, 12]
    assert result.text == "dog ran ran"
    assert result.finish_reason == "length"


@pytest.mark.parametrize("prompt", ["", "hello world the cat", "a dog sat on the mat", "ran ran ran ran"])
def test_chat(pipeline: Open, prompt: str) -> None:
    result = pipeline("chat")(prompt, max_tokens=12)
    expected = greedy(chat_next, encode(prompt), 12)
    assert result.tokens == expected
    assert result.outputs["tokens"].tolist() == [expected]
    assert result.finish_reason == ("stop" if expected[-1] == EOS else "length")
    assert result.text == " ".join(WORDS[token] for token in expected if token not in (0, 1, 2, 13))


def test_chat_ends(pipeline: Open) -> None:
    result = pipeline("chat")("hello world the cat", max_tokens=8)
    assert (result.tokens, result.text, result.finish_reason) == ([EOS], "", "stop")


def test_chat_messages(pipeline: Open) -> None:
    """The template has no generation of its own: `<s> user hello model`."""
    result = pipeline("chat")(messages=[{"role": "user", "content": "hello"}], max_tokens=4)
    ids = [WORDS.index(word) for word in ("<s>", "user", "hello", "model")]
    assert result.tokens == greedy(chat_next, ids, 4)


def test_chat_streams_its_text(pipeline: Open) -> None:
    stream = pipeline("chat").stream("a dog sat on the mat", max_tokens=6)
    pieces = list(stream)
    assert "".join(pieces) == stream.result.text == stream.result.outputs["text"]


def test_chat_ends_with_its_context(pipeline: Open) -> None:
    """32 positions: three of the prompt and 29 new ones."""
    expected = greedy(chat_next, encode("hello world"), 29)
    assert EOS not in expected
    result = pipeline("chat")("hello world", max_tokens=100)
    assert result.tokens == expected
    assert result.finish_reason == "length"
    with pytest.raises(UsageError):
        pipeline("chat")(" ".join(["cat"] * 40))


def test_chat_samples_alike(backend: str, built: Built) -> None:
    """One-hot logits at a high temperature: every id is likely, so the draws decide."""
    options = {"max_tokens": 20, "temperature": 2.0, "seed": 11}
    engine = genai_runner.load(built("examples/chat"), backend)("hello world", **options)
    literal = genai_runner.load(built("examples/chat"), backend, literal=True)("hello world", **options)
    assert engine.tokens == literal.tokens
    assert engine.text == literal.text
    other = genai_runner.load(built("examples/chat"), backend)("hello world", **{**options, "seed": 12})
    assert other.tokens != engine.tokens


# -- Whisper ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [16, 40])
def test_whisper(pipeline: Open, samples: int) -> None:
    audio = np.sin(np.arange(samples) * 0.7).astype(np.float32) * 0.28
    power = np.maximum((audio.astype(np.float64).reshape(-1, 4) ** 2).mean(axis=1), 1e-10)
    cross = float(-np.log10(power).sum())  # the first run has an empty self cache: scale 1
    assert abs(cross - round(cross)) < 0.4  # rounding is clear
    result = pipeline("whisper")(audio=audio, max_tokens=6)
    assert result.tokens == greedy(lambda ids: (sum(ids) + round(cross)) % 16, [1, 14], 6, eos=None)


def test_whisper_takes_other_first_ids(pipeline: Open) -> None:
    audio = np.full(8, 0.1, np.float32)  # two frames of power 0.01: log10 is -2, so the cross cache holds 2 and 2
    assert pipeline("whisper")(audio=audio, start=[[3]], max_tokens=3).tokens == [7, 14, 12]


# -- vision-language --------------------------------------------------------------------------------------------------


def vision_next(features: NDArray[np.float64]) -> Callable[[list[int]], int]:
    def next_id(ids: list[int]) -> int:
        rows = iter(features.sum(axis=1))
        total = sum(place * (next(rows) if token == 13 else 10 * token) for place, token in enumerate(ids))
        return math.floor(total) % 16

    return next_id


def test_vision_language_with_an_image(pipeline: Open) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    colours = pixels.astype(np.float64).mean(axis=1)
    features = np.concatenate([colours.mean(axis=1, keepdims=True), colours], axis=1)
    result = pipeline("vision-language")("the <image> <image> cat", image=png(pixels), max_tokens=6)
    expected = greedy(vision_next(features), encode("the <image> <image> cat"), 6)
    assert result.tokens == expected
    other = pipeline("vision-language")("the <image> <image> cat", image=png(pixels + 5), max_tokens=6)
    assert other.tokens != expected


def test_vision_language_without_an_image(pipeline: Open) -> None:
    result = pipeline("vision-language")("the cat sat", max_tokens=6)
    assert result.tokens == greedy(vision_next(np.zeros((0, 4))), encode("the cat sat"), 6)


# -- text to image ----------------------------------------------------------------------------------------------------


def philox_normal(seed: int, count: int, stream: int = 1) -> NDArray[np.float32]:
    """`random.normal@1` of the first draw, written from its specification (spec/ops/random.md)."""
    values: list[float] = []
    for block in range((count + 1) // 2):
        counter, key = [block, 0, 0, stream], [seed & 0xFFFFFFFF, seed >> 32]
        for _ in range(10):
            low, high = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
            crossed = (high >> 32) ^ counter[1] ^ key[0], (low >> 32) ^ counter[3] ^ key[1]
            counter = [crossed[0], high & 0xFFFFFFFF, crossed[1], low & 0xFFFFFFFF]
            key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
        u1, u2 = (((counter[i] >> 5) * 2**26 + (counter[i + 1] >> 6)) / 2**53 for i in (0, 2))
        radius = math.sqrt(-2 * math.log(1 - u1))
        values += [radius * math.cos(2 * math.pi * u2), radius * math.sin(2 * math.pi * u2)]
    return np.array(values[:count], np.float32)


@pytest.mark.parametrize(("seed", "steps", "guidance"), [(0, 3, 2.5), (7, 5, 1.0), (2**40 + 3, 0, 4.0)])
def test_text_to_image(pipeline: Open, seed: int, steps: int, guidance: float) -> None:
    x = philox_normal(seed, 8).astype(np.float64).reshape(1, 2, 2, 2)
    for i in range(steps):
        sigma = 1 - i / steps
        model_input = x / math.sqrt(sigma**2 + 1)
        u, c = (model_input / 2 + np.mean(encode(text)) + sigma for text in ("a", "the cat"))
        x = x - (u + guidance * (c - u)) / steps
    picture = np.clip(np.rint(x * 10 + 128), 0, 255)[0].transpose(1, 2, 0)
    result = pipeline("text-to-image")("the cat", negative="a", seed=seed, steps=steps, guidance=guidance)
    np.testing.assert_allclose(result.outputs["latent"], x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.outputs["image"], picture, atol=1)  # f32 against f64 at .5
    assert result.outputs["image"].dtype == np.uint8


def test_text_to_image_defaults(pipeline: Open) -> None:
    run = pipeline("text-to-image")
    given = run("the cat", negative="", guidance=2.5, steps=3, seed=0)
    np.testing.assert_array_equal(run("the cat").outputs["latent"], given.outputs["latent"])


# -- nested loops -----------------------------------------------------------------------------------------------------


def speak(ids: list[int], max_frames: int) -> tuple[list[list[int]], bool]:
    """Frames of four codes, and whether the ending code came."""
    said, frames = sum(ids), list[list[int]]()
    while len(frames) < max_frames:
        code = said % 16
        frame, held, value = [code], 0, said
        for k in range(3):
            held += value  # the predictor's cache, empty at the start of each frame
            value = (held * (k + 1) + 3) % 16
            frame.append(value)
        frames.append(frame)
        said += sum(frame)
        if code == EOS:
            return frames, True
    return frames, False


@pytest.mark.parametrize("prompt", ["the cat sat", "hello", "a a a", "mat", "model user model"])
def test_speech(pipeline: Open, prompt: str) -> None:
    frames, ended = speak(encode(prompt), 6)
    result = pipeline("speech")(prompt, max_frames=6)
    np.testing.assert_array_equal(result.outputs["wave"], np.array(frames, np.float32).ravel() / 16)
    assert result.finish_reason == ("stop" if ended else "length")


def test_speech_ends_both_ways() -> None:
    assert {speak(encode(prompt), 6)[1] for prompt in ("the cat sat", "hello", "a a a", "mat", "model user model")} == {
        True,
        False,
    }


def test_speech_streams_frames(pipeline: Open) -> None:
    stream = pipeline("speech").stream("the cat sat", max_frames=3)
    pieces = list(stream)
    assert [piece.shape for piece in pieces] == [(4,)] * 3
    np.testing.assert_array_equal(np.concatenate(pieces), stream.result.outputs["wave"])
