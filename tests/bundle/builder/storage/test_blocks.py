# SPDX-License-Identifier: Apache-2.0
"""Block quantisation computes what ONNX Runtime's own quantiser computes, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.torch

from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: E402
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)

from genai_bundle.builder.storage.blocks import (  # noqa: E402
    BlockForm,
    dequantise,
    fitting_block,
    pack,
    quantise,
    unpack,
)


def hard(rows: int, length: int) -> np.ndarray[Any, Any]:
    """Random rows with what is easily got wrong: zeros, one sign, halves, large and tiny numbers."""
    weights = np.random.default_rng(rows + length).standard_normal((rows, length)).astype(np.float32)
    weights[0] = 0
    weights[1] = np.abs(weights[1])
    weights[2] = -np.abs(weights[2])
    weights[3] = np.arange(length) % 16 / 2  # halves of the step
    weights[4] = np.where(np.arange(length) % 3, 7.5, -8)
    weights[5] *= 1e-30
    weights[6] *= 1e30
    weights[7, ::5] = 0.25
    return weights


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("length", "block"), [(64, 32), (96, 32), (48, 16), (384, 128), (512, 256)])
def test_the_numbers_are_onnx_runtimes(bits: int, symmetric: bool, length: int, block: int) -> None:
    weights = hard(24, length)
    form = BlockForm(bits, block, symmetric)
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=bits)
    values, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(weights.T))
    got = quantise(weights.copy(), form)
    np.testing.assert_array_equal(got.scales, scales.reshape(got.scales.shape))
    if not symmetric:  # its symmetric form leaves them out
        np.testing.assert_array_equal(got.zeros, unpack(zeros.reshape(24, -1), bits, length // block))
    np.testing.assert_array_equal(got.values, values.reshape(got.values.shape))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_is_at_most_half_a_step(bits: int, symmetric: bool) -> None:
    """A whole one for what the symmetric form clips: the extreme with the rarer sign."""
    weights = np.random.default_rng(1).standard_normal((16, 128)).astype(np.float32)
    form = BlockForm(bits, 32, symmetric)
    blocks = quantise(weights.copy(), form)
    steps = np.abs(np.repeat(blocks.scales, 32, axis=1))
    gaps = np.abs(dequantise(blocks, form) - weights)
    assert (gaps <= steps * (1.0 if symmetric else 0.502)).all()
    assert gaps.max() > 0


def test_quantising_what_was_dequantised_changes_nothing() -> None:
    weights = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    form = BlockForm(8, 32, True)
    once = dequantise(quantise(weights, form), form)
    np.testing.assert_allclose(dequantise(quantise(once.copy(), form), form), once, rtol=0, atol=1e-7)


def test_the_argument_is_not_changed() -> None:
    weights = hard(8, 64)
    before = weights.copy()
    for symmetric in (True, False):
        quantise(weights, BlockForm(4, 32, symmetric))
    np.testing.assert_array_equal(weights, before)


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_packing_is_undone_by_unpacking(length: int) -> None:
    values = np.random.default_rng(3).integers(0, 16, (5, length)).astype(np.uint8)
    packed = pack(values, 4)
    assert packed.shape == (5, -(-length // 2))
    assert packed[0, 0] & 15 == values[0, 0]
    np.testing.assert_array_equal(unpack(packed, 4, length), values)


@pytest.mark.parametrize(("length", "wanted", "block"), [(64, 32, 32), (48, 32, 16), (96, 128, 32), (40, 64, None)])
def test_the_block_that_fits(length: int, wanted: int, block: int | None) -> None:
    assert fitting_block(length, wanted) == block
