# SPDX-License-Identifier: Apache-2.0
"""MatMulNBits and GatherBlockQuantized against ONNX Runtime, and where their bytes are afterwards."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from bundle.builder.lowering.nodes import Array, agrees, draw, left, one

N = 6


def octets(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def matrix(bits: int, length: int, block: int, zeros: str) -> dict[str, Array]:
    count = -(-length // block)
    found = {"w": octets(1, N, count, block * bits // 8), "scales": draw(2, N, count, scale=0.1)}
    width = -(-count * bits // 8)
    kinds = {"packed": octets(3, N, width), "float": draw(3, N, count, scale=3) + 7.5, "none": octets(0, 1)}
    return found | {"zeros" if zeros != "none" else "_zeros": kinds[zeros]}


# ONNX Runtime's CPU has no product of eight bits with zeros as numbers.
@pytest.mark.parametrize(("bits", "zeros"), [(4, "none"), (4, "packed"), (4, "float"), (8, "none"), (8, "packed")])
@pytest.mark.parametrize(("length", "block"), [(64, 32), (96, 32), (32, 16), (72, 32), (33, 16)])
def test_products(bits: int, length: int, block: int, zeros: str) -> None:
    """Of K as a multiple of the block, of an odd number of blocks, and of a last block that is not full."""
    feeds = {"x": draw(9, 2, 3, length)}
    sizes = {"K": length, "N": N, "bits": bits, "block_size": block}
    agrees(one("MatMulNBits", feeds, ["y"], weights=matrix(bits, length, block, zeros), **sizes), feeds, within=1e-4)


def test_a_bias_and_flat_scales() -> None:
    weights = matrix(4, 64, 32, "packed")
    weights = {**weights, "scales": weights["scales"].reshape(-1), "zeros": weights["zeros"].reshape(-1)}
    feeds = {"x": draw(9, 5, 64)}
    sizes = {"K": 64, "N": N, "bits": 4, "block_size": 32}
    model = one("MatMulNBits", feeds, ["y"], weights=weights | {"_g": feeds["x"], "bias": draw(4, N)}, **sizes)
    agrees(model, feeds, within=1e-4)


def test_the_bytes_stay() -> None:
    weights = matrix(4, 64, 32, "packed")
    feeds = {"x": draw(9, 5, 64)}
    lowered = agrees(
        one("MatMulNBits", feeds, ["y"], weights=weights, K=64, N=N, bits=4, block_size=32), feeds, within=1e-4
    )
    kept = {tuple(tensor.dims): tensor for tensor in lowered.graph.initializer}
    assert kept[N, 64].raw_data == weights["w"].tobytes()
    assert kept[N, 64].data_type == onnx.TensorProto.UINT4
    types = {tensor.data_type: tensor.raw_data for tensor in lowered.graph.initializer if tensor.dims == [N, 2]}
    assert types[onnx.TensorProto.UINT4] == weights["zeros"].tobytes()
    assert types[onnx.TensorProto.FLOAT] == weights["scales"].tobytes()


def test_what_is_left() -> None:
    feeds, sizes = {"x": draw(9, 5, 64)}, {"K": 64, "N": N, "block_size": 32}
    weights = matrix(4, 64, 32, "packed") | {"g": np.zeros(64, np.int32)}
    assert "group index" in left(one("MatMulNBits", feeds, ["y"], weights=weights, bits=4, **sizes))
    assert "2 bits" in left(one("MatMulNBits", feeds, ["y"], weights=matrix(4, 64, 32, "none"), bits=2, **sizes))


GATHERED = [
    *((form, blocks, zeros) for form in ("u8x4", "u8x8") for blocks in (2, 3) for zeros in (False, True)),
    ("u4", 2, False), ("u4", 2, True), ("u4", 3, False),  # a row of an odd number of zeros would end within a byte
]  # fmt: skip


@pytest.mark.parametrize(("form", "blocks", "zeros"), GATHERED)
@pytest.mark.parametrize("ids", [np.array([[3, 0, 1], [4, 4, 2]]), np.array(2)])
def test_gathered_rows(form: str, blocks: int, zeros: bool, ids: Array) -> None:
    block, rows, bits = 16, 5, 8 if form == "u8x8" else 4
    length = block * blocks
    scales = draw(2, rows, blocks)
    if form == "u4":
        weights = {"table": octets(1, rows, length).astype(ml_dtypes.uint4), "scales": scales}
        more = {"zeros": octets(3, rows, blocks).astype(ml_dtypes.uint4)}
    else:
        weights = {"table": octets(1, rows, length * bits // 8), "scales": scales}
        more = {"zeros": octets(3, rows, -(-blocks * bits // 8))}
    attributes: dict[str, Any] = {"block_size": block, "gather_axis": 0, "quantize_axis": 1}
    attributes |= {"bits": bits} if form != "u4" else {}
    feeds = {"ids": ids}
    model = one("GatherBlockQuantized", feeds, ["y"], weights=weights | (more if zeros else {}), **attributes)
    inputs = model.graph.node[0].input
    inputs[0], inputs[1] = inputs[1], inputs[0]  # the table comes before what is fed
    agrees(model, feeds)
