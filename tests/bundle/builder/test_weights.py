# SPDX-License-Identifier: Apache-2.0
"""Graphs are serialised with their weights in shards: once, lazily, and the same way every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytestmark = pytest.mark.torch

from genai_bundle.builder.weights import pack  # noqa: E402
from genai_bundle.errors import SourceError  # noqa: E402


def graph(**tensors: Any) -> Any:
    """A graph that adds its initializers to its input."""
    total = ir.Value(name="x", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, port, initializers = [], total, []
    for name, tensor in tensors.items():
        tensor = ir.tensor(tensor, name=name) if isinstance(tensor, np.ndarray) else tensor
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=kind, const_value=tensor)
        initializers.append(value)
        nodes.append(ir.node("Add", [total, value], name=f"add.{name}"))
        total = nodes[-1].outputs[0]
        total.name, total.shape, total.type = f"sum.{name}", ir.Shape(["n"]), port.type
    return ir.Model(
        ir.Graph([port], [total], nodes=nodes, initializers=initializers, opset_imports={"": 23}, name="g"),
        ir_version=10,
    )


def external(raw: bytes) -> dict[str, dict[str, str]]:
    """What each initializer says about its external data."""
    model = onnx.load_from_string(raw)
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer
    }


def content(shard: Any) -> bytes:
    raw = bytearray(shard.size)
    for offset, read in shard.segments:
        data = read()
        raw[offset : offset + len(data)] = data
    return bytes(raw)


SMALL, LARGE = np.arange(255, dtype=np.float32), np.arange(256, dtype=np.float32)


def test_small_ones_stay_and_large_ones_move() -> None:
    graphs, shards = pack({"g.onnx": graph(small=SMALL, large=LARGE)}, prefix="g")
    assert list(shards) == ["weights/g-00.bin"]
    assert external(graphs["g.onnx"]) == {
        "small": {},
        "large": {"location": "weights/g-00.bin", "offset": "0", "length": "1024"},
    }
    assert content(shards["weights/g-00.bin"]) == LARGE.tobytes()


def test_two_graphs_and_two_names_share_one_copy() -> None:
    first = graph(a=LARGE, b=LARGE.copy(), c=LARGE + 1)
    second = graph(c=LARGE + 1, d=LARGE)
    graphs, shards = pack({"1.onnx": first, "2.onnx": second})
    assert shards["weights/decoder-00.bin"].size == 2048
    one, two = external(graphs["1.onnx"]), external(graphs["2.onnx"])
    assert one["a"] == one["b"] == two["d"] != one["c"] == two["c"]


def test_the_models_are_not_changed_and_the_bytes_repeat() -> None:
    model = graph(small=SMALL, large=LARGE)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    first, second = pack({"g.onnx": model}), pack({"g.onnx": model})
    assert first[0] == second[0]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_shapes_of_inner_values_are_left_out() -> None:
    graphs, _ = pack({"g.onnx": graph(a=SMALL, b=LARGE)})
    model = onnx.load_from_string(graphs["g.onnx"])
    assert not [value.name for value in model.graph.value_info if value.name.startswith("sum.")]
    assert [dim.dim_param for dim in model.graph.output[0].type.tensor_type.shape.dim] == ["n"]


def test_a_shared_tensor_is_read_for_its_digest_once() -> None:
    """And not kept: a converted checkpoint does not fit into memory."""
    reads = []

    def read() -> Any:
        reads.append(1)
        return ir.Tensor(LARGE, name="w")

    lazy = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([256]), name="w")
    _, shards = pack({"1.onnx": graph(w=lazy), "2.onnx": graph(w=lazy)})
    assert len(reads) == 1
    assert content(shards["weights/decoder-00.bin"]) == LARGE.tobytes()
    assert len(reads) == 2


def test_packed_types_keep_their_bytes() -> None:
    packed = np.arange(1100, dtype=np.uint8)
    tensor = ir.PackedTensor(packed, ir.DataType.UINT4, shape=ir.Shape([2200]), name="q")
    graphs, shards = pack({"g.onnx": graph(q=tensor)})
    assert external(graphs["g.onnx"])["q"]["length"] == "1100"
    assert content(shards["weights/decoder-00.bin"]) == packed.tobytes()


def test_an_initializer_without_a_value_is_refused() -> None:
    model = graph(w=LARGE)
    model.graph.initializers["w"].const_value = None
    with pytest.raises(SourceError, match=r"g\.onnx: the initializer 'w' has no value"):
        pack({"g.onnx": model})
