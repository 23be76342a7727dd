# SPDX-License-Identifier: Apache-2.0
"""Products of one input as one, over weights that lie side by side: what is joined, and where the bytes lie."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

pytestmark = pytest.mark.torch

from genai_bundle.builder.shards import Packer, side_by_side  # noqa: E402
from genai_bundle.builder.variants.ort_joined import join_products  # noqa: E402
from genai_bundle.builder.weights import pack  # noqa: E402

RNG = np.random.default_rng(0)
WIDTH = 32


def weight(rows: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal((rows, WIDTH)).astype(np.float32)


def model(*weights: np.ndarray[Any, Any], inputs: tuple[str, ...] = (), **attributes: int) -> Any:
    """FusedMatMul of `x` (or `inputs`) with each of the weights, and the sum of all that comes out."""
    lines, names = [], [f"w{index}" for index in range(len(weights))]
    shown = " ".join(f", {key} = {value}" for key, value in attributes.items())
    for index, name in enumerate(names):
        source = inputs[index] if inputs else "x"
        lines.append(f"p{index} = com.microsoft.FusedMatMul <transB = 1{shown}> ({source}, {name})")
        lines.append(f"y{index} = ReduceSum <keepdims = 1> (p{index}, last)")
    ports = ", ".join(f"float[b,s,{WIDTH}] {name}" for name in sorted({*inputs} or {"x"}))
    outputs = ", ".join(f"float[b,s,1] y{index}" for index in range(len(names)))
    text = f"""<ir_version: 10, opset_import: ["" : 22, "com.microsoft" : 1]>
g ({ports}) => ({outputs}) <int64[1] last = {{-1}}> {{ {chr(10).join(lines)} }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(one, name) for one, name in zip(weights, names, strict=True)
    )
    return ir.from_proto(proto)


def operators(made: Any) -> Counter[str]:
    return Counter(node.op_type for node in made.graph)


def values(made: Any) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(ir.to_proto(made).SerializeToString())
    rng = np.random.default_rng(1)
    feeds = {one.name: rng.standard_normal((2, 3, WIDTH)).astype(np.float32) for one in session.get_inputs()}
    found: list[np.ndarray[Any, Any]] = session.run(None, feeds)
    return found


def test_products_of_one_input_become_one_and_give_the_same() -> None:
    made = model(weight(48), weight(16), weight(32))
    before = values(made)
    join_products(made.graph)
    assert (operators(made)["FusedMatMul"], operators(made)["Split"]) == (1, 1)
    for one, other in zip(values(made), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "made",
    [
        model(weight(48), weight(16), inputs=("x", "z")),
        model(weight(48), weight(1)),  # one lies in a shard, one stands in the graph
        model(weight(48)),
    ],
    ids=["two inputs", "a small one", "one product"],
)
def test_what_is_not_joined(made: Any) -> None:
    join_products(made.graph)
    assert operators(made)["Split"] == 0


def test_the_bytes_are_stored_once_and_side_by_side() -> None:
    portable, weights = model(*(made := [weight(48), weight(16), weight(32)])), made
    variant = portable.clone()
    join_products(variant.graph)
    for value in [one for one in variant.graph.initializers.values() if not one.uses()]:
        del variant.graph.initializers[value.name]
    graphs, shards = pack({"g.onnx": portable, "g.ort-cpu.onnx": variant})
    (shard,) = shards.values()
    assert shard.size == sum(one.nbytes for one in weights)
    places = {}
    for raw in graphs.values():
        for tensor in onnx.load_from_string(raw).graph.initializer:
            if tensor.external_data:
                given = {entry.key: entry.value for entry in tensor.external_data}
                places[tensor.name] = int(given["offset"]), int(given["length"])
    joined = next(place for name, place in places.items() if "joined" in name)
    assert joined == (0, shard.size)
    assert [places[f"w{index}"] for index in range(3)] == [(0, 6144), (6144, 2048), (8192, 4096)]


def test_what_can_lie_side_by_side() -> None:
    page, large = 65536, 1 << 20
    assert side_by_side([64, 128, 64])
    assert not side_by_side([96, 64])
    assert side_by_side([large, large + page, 4096])
    assert not side_by_side([4096, large])


def test_joined_tensors_of_equal_bytes_have_places_of_their_own() -> None:
    packer = Packer("g")
    one, other = bytes(1024), bytes(range(256)) * 4
    first = packer.join([(1024, lambda: one), (1024, lambda: other)])
    second = packer.join([(1024, lambda: one), (1024, lambda: one)])
    assert (first.offset, first.length, second.offset) == (0, 2048, 2048)
    assert packer.place(1024, lambda: other).offset == 1024


def test_what_is_large_together_begins_at_a_page() -> None:
    """Rule B4, although none of the parts is large by itself."""
    packer, part = Packer("g"), bytes(1 << 19)
    packer.place(64, lambda: b"x" * 64)
    assert packer.join([(1 << 19, lambda: part), (1 << 19, lambda: part)]).offset == 65536
    assert packer.join([(64, lambda: bytes(64)), (64, lambda: bytes(64))]).offset == 65536 + (1 << 20)
