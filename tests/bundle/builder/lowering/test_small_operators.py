# SPDX-License-Identifier: Apache-2.0
"""Element by element, norms, products and rotations, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bundle.builder.lowering.nodes import agrees, draw, left, one


@pytest.mark.parametrize(
    ("op", "second", "attributes"),
    [
        ("Gelu", False, {}),
        ("FastGelu", False, {}),
        ("FastGelu", True, {}),
        ("BiasGelu", True, {}),
        ("QuickGelu", False, {}),
        ("QuickGelu", False, {"alpha": 1.0}),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3, 8), (5, 8)])
def test_gelus(op: str, second: bool, attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
    feeds = {"x": draw(1, *shape, scale=2)} | ({"b": draw(2, 8)} if second else {})
    agrees(one(op, feeds, ["y"], **attributes), feeds)


@pytest.mark.parametrize("attributes", [{}, {"transA": 1}, {"transB": 1}, {"transA": 1, "transB": 1, "alpha": 0.25}])
def test_products(attributes: dict[str, Any]) -> None:
    left, right = (2, 3, 4), (2, 4, 5)
    a = draw(1, *left).transpose(0, 2, 1).copy() if "transA" in attributes else draw(1, *left)
    b = draw(2, *right).transpose(0, 2, 1).copy() if "transB" in attributes else draw(2, *right)
    agrees(one("FusedMatMul", {"a": a, "b": b}, ["y"], **attributes), {"a": a, "b": b})


def test_a_product_over_other_batch_axes_is_left() -> None:
    feeds = {"a": draw(1, 2, 3, 4), "b": draw(2, 3, 4, 5)}
    assert "transBatchA = 1" in left(one("FusedMatMul", feeds, ["y"], transBatchA=1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [["y"], ["y", "", "", "sum"]])
@pytest.mark.parametrize("shape", [(2, 3, 8), (6, 8)])
def test_skip_norms(bias: bool, outputs: list[str], shape: tuple[int, ...]) -> None:
    feeds = {"x": draw(1, *shape), "skip": draw(2, *shape)}
    weights = {"gamma": draw(3, 8)} | ({"bias": draw(5, 8)} if bias else {})
    agrees(one("SkipSimplifiedLayerNormalization", feeds, outputs, weights=weights, epsilon=1e-5), feeds)
    weights = {"gamma": draw(3, 8), "beta": draw(4, 8)} | ({"bias": draw(5, 8)} if bias else {})
    agrees(one("SkipLayerNormalization", feeds, outputs, weights=weights, epsilon=1e-5), feeds)


def test_a_skip_for_all_rows() -> None:
    feeds = {"x": draw(1, 2, 3, 8), "skip": draw(2, 3, 8)}
    agrees(one("SkipLayerNormalization", feeds, ["y"], weights={"gamma": draw(3, 8)}, epsilon=1e-5), feeds)


@pytest.mark.parametrize("attributes", [{}, {"axis": -1, "epsilon": 1e-6, "stash_type": 1}])
def test_norms_without_a_mean(attributes: dict[str, Any]) -> None:
    feeds = {"x": draw(1, 2, 3, 8)}
    model = one("SimplifiedLayerNormalization", feeds, ["y"], domain="", weights={"w": draw(2, 8)}, **attributes)
    agrees(model, feeds)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("form", ["heads", "flat", "part"])
@pytest.mark.parametrize("positions", ["each", "first"])
def test_rotations(interleaved: int, form: str, positions: str) -> None:
    x = draw(1, 2, 3, 5, 8) if form == "heads" else draw(1, 2, 5, 24)
    at = np.array([[4, 5, 6, 7, 8], [0, 1, 2, 3, 4]]) if positions == "each" else np.array([7])
    angles = np.arange(16)[:, None] * (0.5 ** np.arange(2 if form == "part" else 4))
    tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    sizes = {"num_heads": 3, "rotary_embedding_dim": 4} if form == "part" else {}
    feeds = {"x": x, "at": at}
    agrees(one("RotaryEmbedding", feeds, ["y"], weights=tables, interleaved=interleaved, **sizes), feeds)


@pytest.mark.parametrize("kinds", [False, True])
@pytest.mark.parametrize("places", [False, True])
def test_embeddings(kinds: bool, places: bool) -> None:
    ids = np.array([[1, 4, 2], [3, 0, 5]], np.int32)
    feeds = {"ids": ids} | {"kinds" if kinds else "_kinds": np.array([[0, 1, 1], [0, 0, 1]], np.int32)}
    weights = {
        "words": draw(1, 6, 8), "places": draw(2, 9, 8), "types" if kinds else "_types": draw(3, 2, 8),
        "gamma": draw(4, 8), "beta": draw(5, 8),
    }  # fmt: skip
    if places:
        weights |= {"_mask": ids, "at": np.array([[3, 4, 5], [0, 1, 2]], np.int32)}
    agrees(one("EmbedLayerNormalization", feeds, ["y", ""], weights=weights, epsilon=1e-5), feeds)
