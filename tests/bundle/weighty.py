# SPDX-License-Identifier: Apache-2.0
"""A bundle whose one graph computes next to nothing and has any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from genai_bundle.writer import write_bundle
from runner.tiny import HEADER

ADD = """
add (float[N] x) => (float[N] y) {
    one = Constant <value = float {1.0}> ()
    z = Add (x, one)
    y = Mul (z, z)
}
"""
STEPS = [{"run": "add", "in": {"x": "x"}, "out": {"y": "y"}}, {"emit": {"y": "y"}}]


def weighty(
    target: Path, tensors: dict[str, np.ndarray[Any, Any]], *, text: str = ADD, pad: int = 0, **more: Any
) -> Path:
    """A bundle whose graph has these tensors in a shard, in this order, after `pad` bytes."""
    model = onnx.parser.parse_model(text if text.startswith("<") else HEADER + text)
    data = bytes(pad)
    for name, array in tensors.items():
        tensor = model.graph.initializer.add(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.dims.extend(array.shape)
        data += bytes(-len(data) % 64)
        raw = numpy_helper.from_array(array).raw_data
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights/add-00.bin"), ("offset", len(data)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        data += raw
    manifest = {
        "format": "1.0", "name": "weighty", "graphs": {"add": {"file": "add.onnx"}},
        "inputs": {"x": {"type": "f32", "dims": ["N"]}}, "outputs": {"y": {"type": "f32", "dims": ["N"]}},
        "steps": STEPS, **more,
    }  # fmt: skip
    write_bundle(target, manifest, {"add.onnx": model.SerializeToString(), "weights/add-00.bin": data})
    return target
