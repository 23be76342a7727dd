# SPDX-License-Identifier: Apache-2.0
"""Quantised weights are as far apart as the numbers that onnx's and ONNX Runtime's operators make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bundle.weighty import weighty
from genai_bundle.bundle import open_bundle
from genai_bundle.compare import compare, tensors

ROWS, LENGTH, BLOCK = 6, 48, 16
COUNT = LENGTH // BLOCK
Arrays = dict[str, np.ndarray[Any, Any]]

BEGIN = "(float[N] x) => (float[N] y) { y = Add (x, x)"
HEAD = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]> g '
TEXTS = {
    "DequantizeLinear": f"{HEAD}{BEGIN} w = DequantizeLinear <axis: int = -1, block_size: int = 16> (q, s, z) }}",
    "MatMulNBits": (
        f"{HEAD}{BEGIN} w = com.microsoft.MatMulNBits <K: int = 48, N: int = 6, bits: int = BITS, block_size: int = 16>"
        " (a, q, s, z) }"
    ),
    "GatherBlockQuantized": (
        f"{HEAD}{BEGIN} w = com.microsoft.GatherBlockQuantized <bits: int = BITS, block_size: int = 16,"
        " quantize_axis: int = 1> (q, i, s, z) }"
    ),
}


def typed(draw: np.random.Generator, kind: Any) -> Arrays:
    low, high = {"uint4": (0, 16), "int4": (-8, 8), "uint8": (0, 256), "int8": (-128, 128)}[np.dtype(kind).name]
    return {
        "q": draw.integers(low, high, (ROWS, LENGTH)).astype(kind),
        "s": draw.normal(size=(ROWS, COUNT)).astype(np.float32),
        "z": draw.integers(low, high, (ROWS, COUNT)).astype(kind),
    }


def packed(draw: np.random.Generator, bits: int, shape: tuple[int, ...]) -> Arrays:
    """The last byte of a row of zeros is half full: three blocks of four bits."""
    return {
        "q": draw.integers(0, 256, shape).astype(np.uint8),
        "s": draw.normal(size=(ROWS, COUNT)).astype(np.float32),
        "z": draw.integers(0, 256, (ROWS, -(-COUNT * bits // 8))).astype(np.uint8),
    }


def dequantised(text: str, held: Arrays) -> np.ndarray[Any, Any]:
    """What the node that makes `w` makes of these initializers."""
    model = onnx.parser.parse_model(text)
    node = next(node for node in model.graph.node if node.output[0] == "w")
    given = dict(held)
    if node.op_type == "MatMulNBits":
        given["a"] = np.eye(LENGTH, dtype=np.float32)
    if node.op_type == "GatherBlockQuantized":
        given["i"] = np.arange(ROWS)
    out = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(array, name) for name, array in given.items()]
    graph = helper.make_graph([node], "g", [], [out], weights)
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=10)
    if node.domain:
        made = onnxruntime.InferenceSession(alone.SerializeToString()).run(None, {})[0]
        return made.T if node.op_type == "MatMulNBits" else made
    found: np.ndarray[Any, Any] = ReferenceEvaluator(alone).run(None, {})[0]
    return found


def bundle(path: Path, text: str, held: Arrays) -> Path:
    extra = {"a": np.zeros((1, LENGTH), np.float32), "i": np.zeros(1, np.int64)}
    used = {name: array for name, array in extra.items() if f"({name}," in text or f", {name}," in text}
    return weighty(path, used | held, text=text, requires=["domain:com.microsoft"])


CASES = [
    *(("DequantizeLinear", kind) for kind in (ml_dtypes.uint4, ml_dtypes.int4, np.uint8, np.int8)),
    *((operator, bits) for operator in ("MatMulNBits", "GatherBlockQuantized") for bits in (4, 8)),
]


@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "none"])
@pytest.mark.parametrize(("operator", "form"), CASES, ids=[f"{a}-{getattr(b, '__name__', b)}" for a, b in CASES])
def test_the_distance_is_that_of_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str, form: Any, zeros: bool
) -> None:
    monkeypatch.setattr(tensors, "CHUNK", 2 * LENGTH)  # two rows at a time
    sides, text = [], TEXTS[operator].replace("BITS", str(form))
    if not zeros:
        text = text.replace(", z)", ")")
    for seed in (1, 2):
        draw = np.random.default_rng(seed)
        if operator == "DequantizeLinear":
            held = typed(draw, form)
        else:
            width = BLOCK * form // 8
            shape = (ROWS, COUNT, width) if operator == "MatMulNBits" else (ROWS, COUNT * width)
            held = packed(draw, form, shape)
        sides.append(held if zeros else {name: held[name] for name in "qs"})
    before, after = (dequantised(text, held).astype(np.float64) for held in sides)
    paths = [bundle(tmp_path / f"{number}.genai", text, held) for number, held in enumerate(sides)]
    with open_bundle(paths[0]) as one, open_bundle(paths[1]) as other:
        found = {entry["name"]: entry for entry in compare(one, other).tensors}
    assert found["q"]["dequantised"] == {
        "max_abs": pytest.approx(np.abs(before - after).max(), rel=1e-6),
        "rel": pytest.approx(np.linalg.norm(before - after) / np.linalg.norm(before), rel=1e-6),
    }
    assert [name for name, entry in found.items() if "dequantised" in entry] == ["q"]


def test_other_scales_and_another_form_have_a_distance_too(tmp_path: Path) -> None:
    text = TEXTS["DequantizeLinear"]
    old = typed(np.random.default_rng(1), ml_dtypes.uint4)
    scaled = old | {"s": old["s"] * np.float32(1.5)}
    wider = old | {"q": old["q"].astype(np.uint8), "z": old["z"].astype(np.uint8)}
    paths = [bundle(tmp_path / f"{n}.genai", text, held) for n, held in enumerate((old, scaled, wider))]
    with open_bundle(paths[0]) as one, open_bundle(paths[1]) as other, open_bundle(paths[2]) as third:
        [entry] = compare(one, other).tensors
        retyped = {entry["name"]: entry for entry in compare(one, third).tensors}
    assert (entry["name"], entry["dequantised"]["rel"]) == ("s", pytest.approx(0.5))
    assert retyped["q"]["change"] == "retyped"
    assert retyped["q"]["dequantised"] == {"max_abs": 0.0, "rel": 0.0}  # the same numbers, stored wider
