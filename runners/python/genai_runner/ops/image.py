# SPDX-License-Identifier: Apache-2.0
"""The operations of the family `image`: decode. Needs Pillow (`pip install genai-bundle[image]`)."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.errors import GenaiError

from . import Env, Value, refuse

if TYPE_CHECKING:
    from PIL.Image import Image

Buffer = bytes | bytearray | memoryview
OP = "image.decode@1"
# Decoders that read their own bytes and nothing else; Pillow has others that start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MAX_PIXELS = 1 << 26  # 192 MiB as RGB: a file of a few KB can claim more than a machine has


def decode_1(_env: Env, *, bytes: Value) -> dict[str, NDArray[Any]]:  # noqa: A002  the port's name
    """An image file to pixels u8[H, W, 3]: RGB, upright, its first frame."""
    if not isinstance(bytes, Buffer):
        refuse(OP, "bytes", f"takes bytes, got {type(bytes).__name__}")
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise GenaiError("Pillow is missing", where=OP, hint="Install genai-bundle[image]") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata and about sizes, which are checked here
        try:
            with Image.open(io.BytesIO(bytes), formats=FORMATS) as image:
                _admit(image, bytes)
                return {"pixels": np.asarray(ImageOps.exif_transpose(image).convert("RGB"))}
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            refuse(OP, "bytes", f"holds no readable image: {error}", f"Readable are {', '.join(FORMATS)}")


def _admit(image: Image, raw: Buffer) -> None:
    """Look at the header before anything is unpacked."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        refuse(OP, "bytes", f"holds an image of {width} x {height}, more than {MAX_PIXELS} pixels", "Scale it down")
    depth = raw[24] if image.format == "PNG" else 8  # of the header; Pillow drops the low bits of colours silently
    if image.mode not in MODES or depth > 8:
        refuse(OP, "bytes", f"holds {depth}-bit {image.mode}, which has no 8-bit RGB form", "Convert it first")
