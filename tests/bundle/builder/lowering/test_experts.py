# SPDX-License-Identifier: Apache-2.0
"""MoE and QMoE against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bundle.builder.lowering.nodes import Array, agrees, by_onnxruntime, draw, left, one

EXPERTS, WIDTH, INNER = 4, 32, 64


def fed(rank: int = 2) -> dict[str, Array]:
    return {"x": draw(1, 6, WIDTH) if rank == 2 else draw(1, 2, 3, WIDTH), "router": draw(2, 6, EXPERTS, scale=2)}


def matrices(fused: int, bias: bool) -> dict[str, Array]:
    found = {"w1": draw(3, EXPERTS, fused * INNER, WIDTH, scale=0.2), "b1": draw(4, EXPERTS, fused * INNER)}
    found |= {"w2": draw(5, EXPERTS, WIDTH, INNER, scale=0.2), "b2": draw(6, EXPERTS, WIDTH)}
    return found if bias else {f"_{name}" if name[0] == "b" else name: array for name, array in found.items()}


GATES: list[dict[str, Any]] = [
    {"swiglu_fusion": 1},
    {"swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 1.0},
]


@pytest.mark.parametrize("kind", ["relu", "gelu", "silu", "identity", *range(len(GATES))])
@pytest.mark.parametrize(("k", "normalise", "bias", "rank"), [(1, 0, True, 2), (2, 1, False, 3), (3, 0, True, 3)])
def test_experts(kind: str | int, k: int, normalise: int, bias: bool, rank: int) -> None:
    attributes = {"activation_type": kind} if isinstance(kind, str) else {"activation_type": "swiglu", **GATES[kind]}
    weights = matrices(1 if isinstance(kind, str) else 2, bias)
    model = one("MoE", fed(rank), ["y"], weights=weights, k=k, normalize_routing_weights=normalise, **attributes)
    agrees(model, fed(rank), within=1e-4)


def test_gates_one_after_the_other() -> None:
    """ONNX Runtime's CPU has them in turn only: the same matrices in another order of rows are the truth."""
    weights = matrices(2, True)
    turns = np.arange(2 * INNER).reshape(2, INNER).T.reshape(-1)
    same = {"activation_type": "swiglu", "activation_alpha": 1.702, "activation_beta": 1.0, "k": 2}
    in_turn = {**weights, "w1": weights["w1"][:, turns].copy(), "b1": weights["b1"][:, turns].copy()}
    truth = by_onnxruntime(one("MoE", fed(), ["y"], weights=in_turn, swiglu_fusion=1, **same), fed())
    agrees(one("MoE", fed(), ["y"], weights=weights, swiglu_fusion=2, **same), fed(), truth, within=1e-4)


def quantised(bits: int, block: int, zeros: bool, fused: int) -> dict[str, Array]:
    draws = np.random.default_rng(7)
    found = {}
    for number, (outer, inner) in enumerate(((fused * INNER, WIDTH), (WIDTH, INNER)), 1):
        blocks = inner // block if block else 0
        ends = (outer, -(-blocks * bits // 8)) if block else (-(-outer * bits // 8),)
        found[f"w{number}"] = draws.integers(0, 256, (EXPERTS, outer, inner * bits // 8), np.uint8)
        found[f"s{number}"] = draw(
            number, EXPERTS, outer, *((blocks,) if block else ()), scale=0.02 if bits == 4 else 0.002
        )
        found[f"_b{number}"] = np.zeros(0)
        found[f"z{number}"] = draws.integers(0, 256, (EXPERTS, *ends), np.uint8)
    names = ["w1", "s1", "_b1", "w2", "s2", "_b2", "_w3", "_s3", "_b3"] + (["z1", "z2"] if zeros else [])
    return {name: found.get(name, np.zeros(0)) for name in names}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("kind", ["silu", "swiglu"])
def test_quantised_experts(bits: int, block: int, zeros: bool, kind: str) -> None:
    """Two blocks in one row, one in the other. ONNX Runtime rounds activations for eight bits in blocks."""
    attributes: dict[str, Any] = {"activation_type": kind} | ({"swiglu_fusion": 1} if kind == "swiglu" else {})
    attributes |= {"block_size": block} if block else {}
    weights = quantised(bits, block, zeros, 2 if kind == "swiglu" else 1)
    model = one(
        "QMoE", fed(), ["y"], weights=weights, k=2, normalize_routing_weights=1, expert_weight_bits=bits,
        weights_prepacked=0, **attributes,
    )  # fmt: skip
    agrees(model, fed(), within=5e-2 if bits == 8 and block else 1e-4)


def test_shares_that_are_given() -> None:
    weights = quantised(4, 32, True, 1)
    feeds = fed() | {"shares": np.abs(draw(9, 6, EXPERTS))}
    for normalise in (0, 1):
        model = one(
            "QMoE", fed(), ["y"], weights=weights | {"_z3": np.zeros(0)}, k=2, normalize_routing_weights=normalise,
            block_size=32, weights_prepacked=0, activation_type="silu",
        )  # fmt: skip
        model.graph.node[0].input.append("shares")
        model.graph.input.append(one("QMoE", feeds, ["y"]).graph.input[2])
        agrees(model, feeds, within=1e-4)


def test_what_is_left() -> None:
    assert "activation is geglu" in left(one("MoE", fed(), ["y"], weights=matrices(1, True), activation_type="geglu"))
    model = one("QMoE", fed(), ["y"], weights=quantised(4, 32, False, 1), weights_prepacked=1)
    assert "weights_prepacked = 1" in left(model)
