# SPDX-License-Identifier: Apache-2.0
"""Exact and fast arithmetic: what is chosen, what it computes, and how it is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import genai_runner
from genai_bundle.errors import UsageError
from genai_runner.placement import precision_of
from genai_runner.verify import run_tests
from runner.tiny import bundle, counter

K, N, BLOCK = 64, 48, 32


def product(level: int = 0) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A graph with one MatMulNBits, an input for it, and the product in float64 with the dequantised weight."""
    rng = np.random.default_rng(3)
    stored = rng.integers(0, 16, (N, K // BLOCK, BLOCK)).astype(np.uint8)
    scales = (rng.random((N, K // BLOCK)) + 0.5).astype(np.float32) * np.float32(0.05)
    packed = stored[..., 0::2] | (stored[..., 1::2] << 4)
    x = rng.standard_normal((3, K)).astype(np.float32)
    weight = ((stored - 8.0) * scales[..., None]).reshape(N, K)
    sizes = {"K": K, "N": N, "bits": 4, "block_size": BLOCK, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "blocks", "scales"], ["y"], domain="com.microsoft", **sizes)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", N])],
        [numpy_helper.from_array(packed, "blocks"), numpy_helper.from_array(scales, "scales")],
    )
    domains = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString(), x, x @ weight.T


def quantised(target: Path, level: int = 0, **changes: object) -> tuple[Path, np.ndarray, np.ndarray]:
    model, x, expected = product(level)
    rows = {"type": "f32", "dims": ["R", K]}
    manifest = {
        "requires": ["domain:com.microsoft"],
        "inputs": {"x": rows},
        "outputs": {"y": rows | {"dims": ["R", N]}},
        "steps": [{"run": "product", "in": {"x": "x"}, "out": {"y": "y"}}, {"emit": {"y": "y"}}],
    }
    return bundle(target, {"product": model}, {**manifest, **changes}), x, expected


@pytest.mark.parametrize("level", [0, 1, 4])
def test_r20_exact_is_the_dequantised_product_whatever_the_graph_says(level: int, tmp_path: Path) -> None:
    path, x, expected = quantised(tmp_path / "x.genai", level)
    found = {}
    for precision in ("exact", "fast"):
        with genai_runner.load(path, precision=precision) as pipe:
            found[precision] = pipe(x=x).outputs["y"]
    np.testing.assert_allclose(found["exact"], expected, rtol=0, atol=1e-5)
    gap = np.abs(found["fast"] - expected).max()
    assert 1e-4 < gap < 0.2, "rounded activations show, and are not far off"


def test_r20_the_default_follows_the_weights_and_every_result_says_it(tmp_path: Path) -> None:
    path, x, _ = quantised(tmp_path / "x.genai")
    for asked, expected in ((None, "fast"), ("exact", "exact"), ("fast", "fast")):
        with genai_runner.load(path, precision=asked) as pipe:
            assert pipe(x=x).stats.graphs["product"].precision == pipe.placements["product"].precision == expected
    with genai_runner.load(counter(tmp_path / "plain.genai")) as pipe:
        place = pipe([1], max_tokens=1).stats.graphs["decoder"]
    assert (place.precision, place.variant, place.backend, place.device) == ("exact", "portable", "onnxruntime", "cpu")
    assert str(place) == "decoder.onnx (portable) on onnxruntime, cpu, exact"


def test_r20_quantised_activations_are_no_quantised_weights() -> None:
    head = '<ir_version: 10, opset_import: ["" : 23]>'
    body = "(float[2] x) => (float[2] y) <float s = {0.5}, int8[2] w = {1, 2}> { %s }"
    values = onnx.parser.parse_model(head + " g " + body % "q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)")
    weights = onnx.parser.parse_model(head + " g " + body % "v = DequantizeLinear(w, s) y = Add(x, v)")
    assert (precision_of(values, None), precision_of(weights, None)) == ("exact", "fast")


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no precision 'fastest'"):
        genai_runner.load(counter(tmp_path / "x.genai"), precision="fastest")


def test_the_reference_evaluator_is_always_exact(tmp_path: Path) -> None:
    with genai_runner.load(counter(tmp_path / "x.genai"), "reference", precision="fast") as pipe:
        assert pipe.placements["decoder"].precision == "exact"


def test_r21_golden_vectors_of_fast_arithmetic_have_a_bound_of_their_own(tmp_path: Path) -> None:
    _, x, expected = product()
    test = {"in": {"x": x.tolist()}, "out": {"y": expected.astype(np.float32).tolist()}, "compare": {"abs": 1e-5}}
    for bound, verdict in ((0.2, True), (1e-6, False), (None, False)):
        path, _, _ = quantised(tmp_path / f"{bound}.genai", tests=[test | ({} if bound is None else {"fast": bound})])
        with genai_runner.load(path, precision="exact") as pipe:
            assert all(result.passed for result in run_tests(pipe))
        with genai_runner.load(path, precision="fast") as pipe:
            [result] = run_tests(pipe)
        assert result.passed is verdict


@pytest.mark.parametrize(("bound", "verdict"), [(0.5, True), (0.05, False)])
def test_r21_ids_are_scored_after_the_expected_ids(bound: float, verdict: bool, tmp_path: Path) -> None:
    """After 1 the graph gives 2 and then 3. Of the expected ids 2, 4 the second is not its best one."""
    tests = [{"in": {"ids": [[1]], "max_tokens": 2}, "out": {"tokens": [[2, 4]]}, "compare": "tokens", "fast": bound}]
    path = counter(tmp_path / "x.genai", tests=tests)
    with genai_runner.load(path, precision="fast") as pipe:
        [result] = run_tests(pipe)
        logits = pipe.generator([1, 2], max_tokens=1).get_logits()
    assert result.passed is verdict
    assert result.difference == pytest.approx(logits.max() - logits[4])
