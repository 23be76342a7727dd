# SPDX-License-Identifier: Apache-2.0
"""Host ops beyond the vectors of their pages: lookup, counting of draws, errors, images."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from genai_bundle.errors import GenaiError, UsageError, VersionError
from genai_runner import philox
from genai_runner.ops import Env, resolve
from genai_runner.ops import core as core_ops
from genai_runner.sampling import Options, sample
from genai_runner.text import TextCodec
from runner import tokenizers_small as small


def env(text: TextCodec | None = None, **options: Any) -> Env:
    return Env(text, Options.merge({}, options))


def run(op: str, given: Env, **ports: Any) -> Mapping[str, Any]:
    return resolve(op)(given, **ports)


def test_lookup_by_convention() -> None:
    assert resolve("zeros@1") is core_ops.zeros_1
    assert resolve("random.normal@1").__module__ == "genai_runner.ops.random"


@pytest.mark.parametrize(
    "op",
    [
        "zeros@2",
        "zeros",
        "zeros@01",
        "core.zeros@1",
        "nothing@1",
        "text.nothing@1",
        "nowhere.x@1",
        "os.path@1",
        "text.a.b@1",
        "__init__.resolve@1",
        "dims_of@1",
        "Zeros@1",
        "zeros@1\n",
    ],
)
def test_an_unknown_op_needs_a_newer_runner(op: str) -> None:
    with pytest.raises(VersionError, match="does not know the operation"):
        resolve(op)


def test_helpers_of_a_module_are_no_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    import genai_runner.ops.text as module

    monkeypatch.setattr(module, "borrowed_1", core_ops.zeros_1, raising=False)
    with pytest.raises(VersionError):
        resolve("text.borrowed@1")


def test_t1_a_refused_value_names_the_op_and_the_port() -> None:
    with pytest.raises(UsageError, match=r"zeros@1: port 'shape' is 1.5, but it takes an integer"):
        run("zeros@1", env(), shape=[1.5])
    with pytest.raises(UsageError, match=r"text.encode@1: port 'add_special' is 1, but it takes true or false"):
        run("text.encode@1", env(TextCodec(small.tokenizer(None))), text="the", add_special=1)
    with pytest.raises(UsageError, match=r"text.decode@1: port 'tokens' takes integers, got float64"):
        run("text.decode@1", env(TextCodec(small.tokenizer(None))), tokens=[[0.5]])
    with pytest.raises(UsageError, match=r"concat@1: port 'a' is 'x', but it takes numbers"):
        run("concat@1", env(), a="x", b=[1], axis=0)
    with pytest.raises(UsageError, match=r"concat@1: port 'b' is no tensor"):
        run("concat@1", env(), a=[1], b=[[1], [1, 2]], axis=0)


def test_text_ops_need_a_tokenizer() -> None:
    with pytest.raises(GenaiError, match=r"text.encode@1: this bundle has no tokenizer"):
        run("text.encode@1", env(), text="the")


def test_t2_t16_draws_are_counted_for_each_stream_and_request() -> None:
    logits, hot = np.zeros((1, 1, 1000), np.float32), env(temperature=1.0, seed=3)
    tokens = [run("sample@1", hot, logits=logits)["token"].item() for _ in range(4)]
    assert tokens == [sample(np.zeros(1000), hot.options, step=step) for step in range(4)]
    first = run("random.normal@1", hot, shape=[2])["y"]
    assert hot.draws == {0: 4, 1: 1}
    run("sample@1", hot, logits=logits, step=np.array(9))
    assert hot.draws == {0: 4, 1: 1}
    assert run("random.normal@1", env(seed=3), shape=[2])["y"].tolist() == first.tolist()
    greedy = env(seed=3)
    run("sample@1", greedy, logits=logits)
    assert greedy.draws == {0: 1}


def test_sample_takes_ports_as_tensors() -> None:
    logits = np.log(np.array([[[1, 1, 1], [1, 2, 4]]], np.float32))
    ports = {"temperature": np.array(1.0, np.float32), "top_k": np.array([2]), "seed": np.array([[5]], np.int64)}
    expected = sample(logits[0, -1], Options(temperature=1.0, top_k=2, seed=5), step=0)
    assert run("sample@1", env(), logits=logits, **ports)["token"].tolist() == [[expected]]


def test_t31_noise_is_that_of_philox() -> None:
    noise = run("random.normal@1", env(), shape=np.array([3, 5]), seed=np.array(1 << 40), step=2, stream=4)["y"]
    assert noise.tolist() == philox.normal(1 << 40, (3, 5), step=2, stream=4).tolist()
    x0, x1, x2, x3 = philox.block((0, 1 << 8), (1, 0, 2, 4))
    u, v = (((a >> 5) * 2**26 + (b >> 6)) / 2**53 for a, b in ((x0, x1), (x2, x3)))
    radius = np.sqrt(-2 * np.log(1 - u))
    assert np.allclose(noise.ravel()[2:4], [radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], rtol=1e-6)


@pytest.mark.parametrize("ports", [{"step": 1 << 32}, {"stream": -1}, {"seed": -1}, {"shape": [1 << 30, 1 << 30]}])
def test_random_ports_out_of_range(ports: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"port '{next(iter(ports))}'"):
        run("random.normal@1", env(), **{"shape": [2], **ports})


def test_t28_a_literal_takes_the_other_ones_dtype() -> None:
    half = np.array([0.5], np.float16)
    assert run("concat@1", env(), a=half, b=[1], axis=0)["y"].dtype == np.float16
    assert run("concat@1", env(), a=[1.5], b=half, axis=0)["y"].dtype == np.float16
    assert run("concat@1", env(), a=[[]], b=np.array([[3]]), axis=1)["y"].tolist() == [[3]]
    with pytest.raises(UsageError, match="port 'b' is"):
        run("concat@1", env(), a=np.array([1]), b=[0.5], axis=0)


def test_t29_t27_tensors_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="port 'b' is int32, but 'a' is int64"):
        run("concat@1", env(), a=np.array([1]), b=np.array([1], np.int32), axis=0)
    with pytest.raises(UsageError, match=r"takes one of f32, f16, i64, i32, u8, bool"):
        run("zeros@1", env(), shape=[1], dtype="f64")


def test_t25_t26_stopping() -> None:
    codec = TextCodec(small.tokenizer(small.DECODERS["gemma"]), eos=(2,))
    ids = [codec.tokenizer.token_to_id(token) for token in ("▁the", "▁cat", "s")]
    done = [bool(run("stop@1", env(codec, stop="cats"), tokens=np.array([ids[:n]]))["done"]) for n in range(4)]
    assert done == [False, False, False, True]
    assert run("stop@1", env(codec), tokens=np.array(2))["done"]
    with pytest.raises(UsageError, match="need a tokenizer"):
        run("stop@1", env(stop="x"), tokens=np.array([[1]]))


# Images


def encoded(image: Any, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(raw: Any) -> Any:
    return run("image.decode@1", env(), bytes=raw)["pixels"]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_t32_formats(form: str) -> None:
    from PIL import Image

    grey = Image.new("L", (5, 4), 100)
    pixels = decoded(encoded(grey, form))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (4, 5, 3)
    assert np.abs(pixels.astype(int) - 100).max() <= 2
    assert pixels.flags.c_contiguous


def test_progressive_jpeg() -> None:
    from PIL import Image

    assert decoded(encoded(Image.new("RGB", (20, 20), (9, 8, 7)), "JPEG", progressive=True)).shape == (20, 20, 3)


@pytest.mark.parametrize("form", ["TIFF", "PPM", "TGA", "ICO", "EPS"])
def test_t32_other_formats_are_refused(form: str) -> None:
    from PIL import Image

    with pytest.raises(UsageError, match="Readable are PNG, JPEG"):
        decoded(encoded(Image.new("RGB", (32, 32)), form))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_t33_exif_orientation(orientation: int) -> None:
    from PIL import Image

    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255
    # How the sensor saw it: the inverse of what the orientation asks for.
    back = {1: 0, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    turns = [None, None, "flip", "180", "vertical", "transpose", "270", "transverse", "90"]
    operations: dict[str, Any] = {
        "flip": Image.Transpose.FLIP_LEFT_RIGHT,
        "180": Image.Transpose.ROTATE_180,
        "vertical": Image.Transpose.FLIP_TOP_BOTTOM,
        "transpose": Image.Transpose.TRANSPOSE,
        "270": Image.Transpose.ROTATE_270,
        "transverse": Image.Transpose.TRANSVERSE,
        "90": Image.Transpose.ROTATE_90,
    }
    image: Any = Image.fromarray(upright)
    if (turn := turns[back]) is not None:
        image = image.transpose(operations[turn])
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(encoded(image, "JPEG", exif=exif, quality=100, subsampling=0))
    assert np.array_equal(pixels > 127, upright > 127)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_t34_modes(mode: str) -> None:
    from PIL import Image

    image = Image.new("RGB", (2, 2), (255, 255, 255)).convert(mode)
    assert (decoded(encoded(image)) == 255).all()


def test_t34_cmyk_and_frames() -> None:
    from PIL import Image

    assert decoded(encoded(Image.new("CMYK", (2, 2)), "JPEG")).shape == (2, 2, 3)
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(moving)[0, 0].tolist() == [255, 0, 0]


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_t34_more_than_eight_bits_are_refused(colour: int, channels: int) -> None:
    with pytest.raises(UsageError, match="no 8-bit RGB form"):
        decoded(png(1, 1, 16, colour, b"\0" + bytes(2 * channels)))


@pytest.mark.parametrize("side", [8193, 1_000_000, 2**31 - 1])
def test_t35_decompression_bombs_are_refused_unopened(side: int) -> None:
    with pytest.raises(UsageError, match=r"pixels|no readable image"):
        decoded(png(side, side, 8, 2, b"\0"))


@pytest.mark.parametrize("raw", [b"", b"GIF89a", png(2, 2, 8, 2, b"\0"), png(2, 2, 8, 2, b"")[:40], b"\xff\xd8\xff"])
def test_broken_images_are_refused(raw: bytes) -> None:
    with pytest.raises(UsageError, match=r"image.decode@1: port 'bytes' holds no readable image"):
        decoded(raw)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(GenaiError, match=r"Pillow is missing. Install genai-bundle\[image\]"):
        decoded(b"")


@pytest.mark.shared
def test_photographs(shared: Any) -> None:
    for path in sorted((shared / "images").glob("*.jpg")) + sorted((shared / "images").glob("*.png")):
        pixels = decoded(path.read_bytes())
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert pixels.std() > 1
