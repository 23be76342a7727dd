# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's Attention and MultiHeadAttention, against it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bundle.builder.lowering.nodes import Array, agrees, draw, left, one

HEADS, SIZE, WIDTH = 2, 8, 12
NONE = np.zeros(0)


def joined(
    past: int, mask: Array | None, sequence: int = 4, rows: int = 2
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What is fed, and the weights; `mask` has an axis for past and new tokens."""
    fed = {"x": draw(1, rows, sequence, WIDTH)}
    weights = {"w": draw(2, WIDTH, 3 * HEADS * SIZE, scale=0.3), "b": draw(3, 3 * HEADS * SIZE)}
    later = {"_mask" if mask is None else "mask": NONE if mask is None else mask}
    later |= {"past": draw(4, 2, rows, HEADS, past, SIZE)} if past else {}
    return fed | weights | later, {**weights}


def run(feeds: dict[str, Array], weights: dict[str, Array], outputs: list[str], **attributes: Any) -> None:
    """Weights become initializers, in the order of the inputs."""
    model = one("Attention", feeds, outputs, num_heads=HEADS, **attributes)
    kept = [port for port in model.graph.input if port.name not in weights]
    moved = one("Attention", {}, [], weights=weights).graph.initializer
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(moved)
    agrees(model, {name: array for name, array in feeds.items() if name not in weights})


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("mask", [False, True])
def test_attention_from_one_projection(causal: int, past: int, mask: bool) -> None:
    shown = np.ones((2, 4 + past), np.int32)
    shown[1, :2] = 0
    feeds, weights = joined(past, shown if mask else None)
    run(feeds, weights, ["y", "now"] if past else ["y"], unidirectional=causal)


def test_masks_of_each_query_and_a_scale() -> None:
    shown = np.tril(np.ones((2, 4, 4), np.int32))
    feeds, weights = joined(0, shown)
    run(feeds, weights, ["y"], scale=0.2)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("more", ["nothing", "padding", "bias", "both"])
def test_projected_attention(causal: int, past: int, more: str) -> None:
    width, total = HEADS * SIZE, 4 + past
    shown = np.ones((2, total), np.int32)
    shown[1, :1] = 0
    feeds = {name: draw(seed, 2, 4, width) for seed, name in enumerate("qkv")}
    feeds["b"] = draw(5, 3 * width)
    feeds |= {"mask": shown} if more in ("padding", "both") else {"_mask": NONE}
    feeds |= {"bias": draw(6, 1, HEADS, 4, total)} if more in ("bias", "both") else {"_bias": NONE}
    outputs = ["y"]
    if past:
        feeds |= {"past_k": draw(7, 2, HEADS, past, SIZE), "past_v": draw(8, 2, HEADS, past, SIZE)}
        outputs += ["now_k", "now_v"]
    agrees(one("MultiHeadAttention", feeds, outputs, num_heads=HEADS, unidirectional=causal), feeds)


def test_a_cache_that_is_only_read() -> None:
    """Cross-attention in its second step: keys and values come by heads."""
    feeds = {"q": draw(1, 2, 3, HEADS * SIZE), "k": draw(2, 2, HEADS, 5, SIZE), "v": draw(3, 2, HEADS, 5, SIZE)}
    agrees(one("MultiHeadAttention", feeds, ["y"], num_heads=HEADS), feeds)
    feeds = {"q": draw(1, 2, 3, HEADS * SIZE), "k": draw(2, 2, 5, HEADS * SIZE), "v": draw(3, 2, 5, HEADS * SIZE)}
    agrees(one("MultiHeadAttention", feeds, ["y"], num_heads=HEADS), feeds)


def test_what_is_left() -> None:
    packed = {"q": draw(1, 2, 3, HEADS, 3, SIZE)}
    assert "input 1 is missing" in left(one("MultiHeadAttention", packed, ["y"], num_heads=HEADS))
