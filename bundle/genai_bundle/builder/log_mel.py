# SPDX-License-Identifier: Apache-2.0
"""From sound to a log-mel spectrogram: cut or padded to the encoder's length, windows, power spectrum, mel bands.

The Fourier transform of a window is one matrix product, in float64: it is the same on every engine, and far quicker
than the time of the encoder behind it. Engines carry out `STFT` and `DFT` in ways of their own, or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_bundle.builder.handmade import graph


@dataclass(frozen=True)
class Spectrogram:
    """What preprocessor_config.json says. filters: f64[bins,bands], how much of a frequency each band takes.

    samples: how many the encoder takes; size, hop: samples in a window, and from one window to the next.
    """

    rate: int
    samples: int
    size: int
    hop: int
    filters: NDArray[np.float64]


def make_log_mel(spectrogram: Spectrogram) -> ir.Model:
    """The graph `log_mel`: audio f32[N] -> input_features f32[1,bands,samples / hop]."""
    one, bins, frames = spectrogram, spectrogram.size // 2 + 1, spectrogram.samples // spectrogram.hop
    angle = 2 * np.pi * np.outer(np.arange(one.size), np.arange(bins)) / one.size
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(one.size) / one.size)  # Hann, periodic
    constants = {
        "silence": np.zeros(one.samples, np.float32), "begin": np.array([0]), "end": np.array([one.samples]),
        "edges": np.array([one.size // 2, one.size // 2]), "zero": np.int64(0), "step": np.int64(1),
        "frames": np.int64(frames), "size": np.int64(one.size), "hop": np.int64(one.hop), "column": np.array([1]),
        "cosines": np.cos(angle) * window[:, None], "sines": np.sin(angle) * window[:, None],
        "filters": one.filters, "least": np.float64(1e-10), "ten": np.float64(np.log(10.0)),
        "range": np.float64(8), "four": np.float64(4), "first": np.array([0]),
    }  # fmt: skip
    body = (
        "long = Concat <axis = 0> (audio, silence)  cut = Slice (long, begin, end)  wide = Cast <to = 11> (cut)\n"
        'mirrored = Pad <mode = "reflect"> (wide, edges)\n'
        "frame = Range (zero, frames, step)  starts = Mul (frame, hop)  rows = Unsqueeze (starts, column)\n"
        "within = Range (zero, size, step)  places = Add (rows, within)  windows = Gather (mirrored, places)\n"
        "real = MatMul (windows, cosines)  imaginary = MatMul (windows, sines)\n"
        "real_2 = Mul (real, real)  imaginary_2 = Mul (imaginary, imaginary)  power = Add (real_2, imaginary_2)\n"
        "bands = MatMul (power, filters)  loud = Max (bands, least)  natural = Log (loud)\n"
        "decades = Div (natural, ten)  peak = ReduceMax <keepdims = 0> (decades)  floor = Sub (peak, range)\n"
        "kept = Max (decades, floor)  moved = Add (kept, four)  scaled = Div (moved, four)\n"
        "turned = Transpose <perm = [1, 0]> (scaled)  floats = Cast <to = 1> (turned)\n"
        "input_features = Unsqueeze (floats, first)"
    )
    signature = f"log_mel (float[samples] audio) => (float[1,{one.filters.shape[1]},{frames}] input_features)"
    return graph(signature, body, constants)
