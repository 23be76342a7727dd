# SPDX-License-Identifier: Apache-2.0
"""A backend that computes a graph wrongly never runs it. The careless one here drops attributes, as real ones do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import genai_runner
from genai_bundle.errors import BackendError
from genai_runner.backends.base import Graph, LoadOptions
from genai_runner.backends.reference import ReferenceBackend
from genai_runner.probe import fitness
from runner.tiny import bundle, model

DROPPED = ("antialias", "left_window_size")
RESIZE = """
shrink (float[1,1,H,W] x) => (float[1,1,h,w] y) <int64[2] size = {2, 2}>
{ [smaller] y = Resize <mode = "linear", antialias = 1, axes = [2, 3]> (x, , , size) }
"""
PICTURE = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8) ** 2
WINDOW = """
<ir_version: 10, opset_import: ["" : 25]>
look (float[1,1,N,2] x, float[1,1,P,2] pk, float[1,1,P,2] pv)
  => (float[1,1,N,2] y, float[1,1,T,2] nk, float[1,1,T,2] nv)
{ y, nk, nv = Attention <is_causal = 1, left_window_size = 1> (x, x, x, , pk, pv) }
"""
PLAIN = WINDOW.replace(", left_window_size = 1", "")
BOX = {"type": "f32", "dims": [1, 1, "H", "W"]}


class Careless(ReferenceBackend):
    name = "careless"

    def load(self, graph: str, model: bytes, weights: Mapping[str, memoryview], options: LoadOptions) -> Graph:
        proto = onnx.load_from_string(model)
        for node in proto.graph.node:
            kept = [attribute for attribute in node.attribute if attribute.name not in DROPPED]
            del node.attribute[:]
            node.attribute.extend(kept)
        return super().load(graph, proto.SerializeToString(), weights, options)


def shrinker(target: Path, *, loop: bool = False) -> Path:
    steps: list[Any] = [{"run": "shrink", "in": {"x": "picture"}, "out": {"y": "small"}}]
    outputs: dict[str, Any] = {"small": BOX}
    if loop:
        steps = [{"loop": {"max": 2, "do": [*steps, {"emit": {"small": "small"}}]}}]
        outputs = {"small": {"type": "f32", "dims": ["T*", 1, "H", "W"]}}
    else:
        steps.append({"emit": {"small": "small"}})
    return bundle(target, {"shrink": RESIZE}, {"inputs": {"picture": BOX}, "outputs": outputs, "steps": steps})


def looker(target: Path, default: str, *, backend: str = "careless", **variants: str) -> Path:
    """A graph with state: its default form, and variants for a backend."""
    members = {f"look.{name}.onnx": model(text, "") for name, text in variants.items()}
    entry = {
        "file": "look.onnx",
        "variants": [{"name": name, "when": {"backend": backend}, "file": f"look.{name}.onnx"} for name in variants],
    }
    manifest = {
        "graphs": {"look": entry},
        "inputs": {"x": {"type": "f32", "dims": [1, 1, "N", 2]}},
        "outputs": {"y": {"type": "f32", "dims": [1, 1, "N", 2]}},
        "state": {"kv": {"graph": "look", "ports": {"p{h}": "n{h}"}, "axis": 2, "tokens": "x", "update": "append"}},
        "steps": [{"run": "look", "in": {"x": "x"}, "out": {"y": "y"}}, {"emit": {"y": "y"}}],
    }
    return bundle(target, {"look": model(default, "")}, manifest, **members)


def test_r24_a_graph_that_stands_alone_is_run_by_the_exact_engine_and_r25_that_is_said(tmp_path: Path) -> None:
    path = shrinker(tmp_path / "x.genai")
    with genai_runner.load(path) as exact, genai_runner.load(path, Careless()) as pipe:
        expected = exact(picture=PICTURE).outputs["small"]
        result = pipe(picture=PICTURE)
    np.testing.assert_allclose(result.outputs["small"], expected, rtol=1e-5)
    place = pipe.placements["shrink"]
    assert (place.backend, place.device) == ("onnxruntime", "cpu")
    assert "node 'smaller': Resize (antialias, linear) is computed wrongly" in str(result.stats.graphs["shrink"])
    assert exact.placements["shrink"].reason == ""


def test_r24_a_graph_that_is_run_again_and_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BackendError, match=r"node 'smaller': Resize \(antialias, linear\) is computed wrongly"
    ) as caught:
        genai_runner.load(shrinker(tmp_path / "x.genai", loop=True), Careless())
    assert caught.value.where == "shrink.onnx"
    assert "careless" in caught.value.message
    assert f"{onnx.__version__}" in caught.value.message


def test_r24_a_graph_with_state_is_refused(tmp_path: Path) -> None:
    path = looker(tmp_path / "x.genai", WINDOW)
    with pytest.raises(BackendError, match=r"Attention \(left_window_size, is_causal\) is computed wrongly"):
        genai_runner.load(path, Careless())
    genai_runner.load(path, "reference").close()


@pytest.mark.parametrize("asked", ["auto", "first"])
def test_r24_another_variant_is_taken_only_where_the_user_leaves_the_choice(tmp_path: Path, asked: str) -> None:
    path = looker(tmp_path / "x.genai", WINDOW, first=WINDOW, second=PLAIN)
    if asked == "first":
        with pytest.raises(BackendError, match="Attention") as caught:
            genai_runner.load(path, Careless(), variant=asked)
        assert caught.value.where == "look.first.onnx"
        return
    with genai_runner.load(path, Careless(), variant=asked) as pipe:
        place = pipe.placements["look"]
    assert place.variant == "second"
    assert place.reason.startswith("look.first.onnx: ")


def test_r24_the_default_graph_stands_in_for_a_variant(tmp_path: Path) -> None:
    with genai_runner.load(looker(tmp_path / "x.genai", PLAIN, first=WINDOW), Careless()) as pipe:
        assert pipe.placements["look"].variant == "portable"


def test_a_fake_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "support", lambda *_, **__: pytest.fail("probed"))
    genai_runner.load(shrinker(tmp_path / "x.genai"), "scripted").close()


def test_r24_what_stands_in_functions_branches_and_bodies_is_seen(tmp_path: Path) -> None:
    header = '<ir_version: 10, opset_import: ["" : 23, "own" : 1]>\n'
    called = """
    shrink (float[1,1,H,W] x) => (float[1,1,h,w] y) { y = own.Smaller <smooth = 1> (x) }
    <domain: "own", opset_import: ["" : 23]> Smaller <smooth> (a) => (b) {
      size = Constant <value_ints = [2, 2]> ()
      b = Resize <mode = "linear", antialias : int = @smooth, axes = [2, 3]> (a, , , size)
    }
    """
    branch = """
    shrink (float[1,1,H,W] x) => (float[1,1,h,w] y) <int64[2] size = {2, 2}, bool on = {1}> {
      y = If (on) <then_branch = a () => (float[1,1,h,w] s) {
        s = Resize <mode = "linear", antialias = 1, axes = [2, 3]> (x, , , size)
      }, else_branch = b () => (float[1,1,h,w] t) { t = Identity (x) }>
    }
    """
    manifest = {
        "inputs": {"picture": BOX},
        "outputs": {"small": BOX},
        "steps": [{"run": "shrink", "in": {"x": "picture"}, "out": {"y": "small"}}, {"emit": {"small": "small"}}],
    }
    for name, graph in (("called", called), ("branch", branch)):
        path = bundle(tmp_path / f"{name}.genai", {"shrink": model(graph, header)}, manifest)
        with genai_runner.load(path, Careless()) as pipe:
            assert "Resize (antialias, linear)" in pipe.placements["shrink"].reason, name


@pytest.mark.openvino
def test_r24_openvino_never_shrinks_a_picture_wrongly(tmp_path: Path) -> None:
    """Its own Resize passes over `antialias`: the exact engine does the work, or nobody does."""
    path = shrinker(tmp_path / "x.genai")
    with genai_runner.load(path, "openvino") as pipe, genai_runner.load(path, "reference") as exact:
        expected = exact(picture=PICTURE).outputs["small"]
        np.testing.assert_allclose(pipe(picture=PICTURE).outputs["small"], expected, rtol=1e-5)
    assert pipe.placements["shrink"].backend == "onnxruntime"
    assert "Resize (antialias, linear) is computed wrongly" in pipe.placements["shrink"].reason
    with pytest.raises(BackendError, match=r"shrink.onnx: node 'smaller': Resize .* by openvino 20"):
        genai_runner.load(shrinker(tmp_path / "loop.genai", loop=True), "openvino")


@pytest.mark.openvino
@pytest.mark.parametrize("size", ["left_window_size = 1", "left_window_size = 2, right_window_size = 1"])
def test_r24_openvino_never_forgets_a_window_of_attention(tmp_path: Path, size: str) -> None:
    graph = WINDOW.replace("left_window_size = 1", size)
    with pytest.raises(BackendError, match=r"look.onnx: node 'y': Attention \(left_window_size") as caught:
        genai_runner.load(looker(tmp_path / "x.genai", graph), "openvino")
    assert caught.value.exit_code == 5
    assert "is computed wrongly by openvino 20" in str(caught.value)


@pytest.mark.openvino
def test_r24_openvino_takes_the_form_that_it_computes_rightly(tmp_path: Path) -> None:
    """A variant with the attribute, and a default graph whose mask says the same."""
    masked = """
    <ir_version: 10, opset_import: ["" : 24]>
    look (float[1,1,N,2] x, float[1,1,P,2] pk, float[1,1,P,2] pv)
      => (float[1,1,N,2] y, float[1,1,T,2] nk, float[1,1,T,2] nv)
    <int64 zero = {0}, int64 one = {1}, int64[2] column = {-1, 1}> {
      held = Shape <start = 2, end = 3> (pk)   new = Shape <start = 2, end = 3> (x)   all = Add (held, new)
      from = Squeeze (held)   until = Squeeze (all)   keys = Range (zero, until, one)   rows = Range (from, until, one)
      at = Reshape (rows, column)   back = Sub (at, keys)   near = LessOrEqual (back, one)
      y, nk, nv = Attention <is_causal = 1> (x, x, x, near, pk, pv)
    }
    """
    path = looker(tmp_path / "x.genai", masked, backend="openvino", short=WINDOW)
    rows = np.random.default_rng(2).standard_normal((1, 1, 9, 2)).astype(np.float32)
    with genai_runner.load(path, "openvino") as pipe, genai_runner.load(path, "reference") as exact:
        assert (pipe.placements["look"].variant, exact.placements["look"].variant) == ("portable", "portable")
        np.testing.assert_allclose(pipe(x=rows).outputs["y"], exact(x=rows).outputs["y"], atol=1e-5)
    windowed = looker(tmp_path / "w.genai", WINDOW)
    with genai_runner.load(windowed, "reference") as attribute, genai_runner.load(path, "reference") as exact:
        np.testing.assert_allclose(attribute(x=rows).outputs["y"], exact(x=rows).outputs["y"], atol=1e-5)
