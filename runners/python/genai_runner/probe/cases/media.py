# SPDX-License-Identifier: Apache-2.0
"""Pictures and sound: operators that some engines have in part."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from ...backends.base import Array
from ..case import Case


def png(pixels: Array) -> Array:
    """The bytes of a PNG file of u8[height, width, 3], unfiltered."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return np.frombuffer(b"\x89PNG\r\n\x1a\n" + b"".join(parts), np.uint8)


def mel(bands: int, length: int, rate: int, low: float, high: float) -> Array:
    """Triangles that overlap by halves, at equal steps of 2595 log10(1 + f / 700), one column a band."""
    edges = 2595 * np.log10(1 + np.array([low, high]) / 700)
    steps = edges[0] + np.arange(bands + 2) * (edges[1] - edges[0]) / (bands + 2)
    corners = ((length + 1) * 700 * (10 ** (steps / 2595) - 1) // rate).astype(int)
    weights = np.zeros((length // 2 + 1, bands), np.float32)
    for band, (left, middle, right) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        for bin_ in range(left, right):
            weights[bin_, band] = (
                (bin_ - left) / (middle - left) if bin_ < middle else (right - bin_) / (right - middle)
            )
    return weights


PIXELS = np.random.default_rng(12).integers(0, 256, (3, 5, 3)).astype(np.uint8)
CASES = (
    Case("ImageDecoder", "PNG", "g (uint8[N] x) => (uint8[H,W,3] y) { y = ImageDecoder (x) }",
         {"x": png(PIXELS)}, (PIXELS,)),
    Case("MelWeightMatrix", "",
         "g (float[N,33] x) => (float[N,6] y) <int64 bands = {6}, int64 length = {64}, int64 rate = {8000},"
         " float low = {100.0}, float high = {3800.0}>"
         "{ w = MelWeightMatrix (bands, length, rate, low, high) y = MatMul (x, w) }",
         {"x": np.eye(33, dtype=np.float32)}, (mel(6, 64, 8000, 100.0, 3800.0),)),
)  # fmt: skip
