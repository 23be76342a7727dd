# SPDX-License-Identifier: Apache-2.0
"""A small picture that is the same on every machine, for golden tests: no file of anybody's travels with a bundle."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """u8[height,width,3]: a gradient, stripes and noise, whose resizing shows where a filter is wrong."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    red = x * 255 // max(width - 1, 1)
    green = (y * 7 + x * 3 * (seed + 1)) % 251
    blue = ((x * 73_856_093) ^ (y * 19_349_663) ^ seed) % 257 % 256
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """The bytes of a PNG file."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
