# SPDX-License-Identifier: Apache-2.0
"""GroupQueryAttention with a cache that grows, against ONNX Runtime's operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bundle.builder.lowering.nodes import Array, agrees, by_onnxruntime, draw, left, nodes, one, portable

HEADS, SIZE = 4, 32


def tables(half: int) -> dict[str, Array]:
    angles = np.arange(64)[:, None] * (0.6 ** np.arange(half))
    return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}


def feeds(rows: int, sequence: int, past: int, kept: int = 2, packed: bool = False, short: int = 0) -> dict[str, Array]:
    """`short`: tokens by which the last row ends before the others."""
    lengths = np.full(rows, past + sequence - 1, np.int32)
    lengths[-1] -= short
    query, key, value = (draw(seed, rows, sequence, count * SIZE) for seed, count in ((1, HEADS), (2, kept), (3, kept)))
    whole = {"q": np.concatenate([query, key, value], axis=2), "_k": key, "_v": value}
    return {
        **(whole if packed else {"q": query, "k": key, "v": value}),
        "past_k": draw(4, rows, kept, past, SIZE), "past_v": draw(5, rows, kept, past, SIZE),
        "lengths": lengths, "total": np.array(past + sequence, np.int32),
    }  # fmt: skip


def check(given: dict[str, Array], weights: dict[str, Array] | None = None, kept: int = 2, **attributes: Any) -> Any:
    if "total" in given:  # a scalar, which has no last axis to fix
        assert given["total"].ndim == 0
    sizes = {"num_heads": HEADS, "kv_num_heads": kept}
    model = one("GroupQueryAttention", given, ["y", "now_k", "now_v"], weights=weights, **sizes, **attributes)
    return agrees(model, given)


# ONNX Runtime takes several tokens on a cache for one row only.
@pytest.mark.parametrize(("rows", "sequence", "past"), [(1, 5, 0), (1, 1, 6), (1, 3, 4), (2, 5, 0), (2, 1, 6)])
@pytest.mark.parametrize("kept", [1, 2, 4])
def test_heads_and_caches(rows: int, sequence: int, past: int, kept: int) -> None:
    lowered = check(feeds(rows, sequence, past, kept), kept=kept)
    assert [node.op_type for node in nodes(lowered.graph)].count("Attention") == 1


@pytest.mark.parametrize(
    "attributes",
    [
        {"softcap": 1.5}, {"scale": 0.7}, {"local_window_size": 3}, {"smooth_softmax": 1},
        {"softcap": 0.9, "local_window_size": 2, "smooth_softmax": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize(("sequence", "past"), [(6, 0), (1, 5)])
def test_scores(attributes: dict[str, Any], sequence: int, past: int) -> None:
    check(feeds(2, sequence, past), **attributes)


@pytest.mark.parametrize("attributes", [{}, {"rotary_interleaved": 1}])
@pytest.mark.parametrize("half", [SIZE // 2, SIZE // 4])
@pytest.mark.parametrize(("sequence", "past"), [(5, 0), (1, 6)])
@pytest.mark.parametrize("packed", [False, True])
def test_rotation_inside(attributes: dict[str, Any], half: int, sequence: int, past: int, packed: bool) -> None:
    check(feeds(2, sequence, past, packed=packed), tables(half), do_rotary=1, **attributes)


def test_positions_that_are_given() -> None:
    check(feeds(1, 4, 0), {**tables(SIZE // 2), "at": np.array([[0, 1, 2, 3]])}, do_rotary=1)
    check(feeds(2, 1, 3), {**tables(SIZE // 2), "at": np.array([[3], [3]])}, do_rotary=1)


def test_a_row_padded_on_the_right() -> None:
    given = feeds(2, 5, 0, short=2)
    sizes = {"num_heads": HEADS, "kv_num_heads": 2}
    model = one("GroupQueryAttention", given, ["y", "now_k", "now_v"], **sizes)
    [wanted, _, _], [found, _, _] = by_onnxruntime(model, given), by_onnxruntime(portable(model), given)
    np.testing.assert_allclose(found[0], wanted[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found[1, :3], wanted[1, :3], rtol=2e-5, atol=2e-5)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("sequence", "past"), [(5, 0), (1, 6)])
def test_sinks_and_a_bias(sequence: int, past: int) -> None:
    no = np.zeros(0)
    weights = {"_cos": no, "_sin": no, "_at": no, "bias": draw(7, 1, HEADS, sequence, past + sequence)}
    check(feeds(2, sequence, past), weights)
    check(feeds(2, sequence, past), {**weights, "sinks": draw(8, HEADS)})


def test_what_is_left() -> None:
    given = feeds(1, 1, 4)
    sizes = {"num_heads": HEADS, "kv_num_heads": 2}
    model = one("GroupQueryAttention", given, ["y", "now_k", "now_v"], kv_cache_bit_width=8, **sizes)
    assert left(model) == "GroupQueryAttention (the.node): kv_cache_bit_width = 8 is not understood"
