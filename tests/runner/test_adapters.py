# SPDX-License-Identifier: Apache-2.0
"""Adapters at run time: one pipeline, several of them, chosen by each request."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genai_runner
from conftest import BACKENDS
from genai_bundle.errors import UsageError
from genai_runner.backends.base import Array, Graph, LoadOptions, Tensor, find_backend
from runner.tiny import bundle, model
from spec.recipes import build
from vectors.adapters import ADAPTER_MEMBERS, ADAPTERS
from vectors.manifests import change

WIDE = """
scale (float[1,300] x, float[300,rank] a, float[rank,300] b) => (float[1,300] y) { l = MatMul(x, a) y = MatMul(l, b) }
"""
TWO = """
two (float[1] x, float[n] a, float[1] b) => (float[1] y, float[m] seen) { y = Add(x, b) seen = Identity(a) }
"""


def numbers(result: genai_runner.Result) -> list[Any]:
    found: list[Any] = result.outputs["y"].tolist()
    return found


@pytest.fixture
def columns(tmp_path: Path) -> Path:
    """A bundle that gives its two columns as they are, exchanged (`swap-2.0`), or the first one twice (`first`)."""
    return bundle(tmp_path / "x.genai", {}, ADAPTERS, **ADAPTER_MEMBERS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_r18_each_request_has_the_adapter_that_it_names(backend: str, columns: Path) -> None:
    with genai_runner.load(columns, backend) as pipe:
        for adapter, expected in (
            (None, [[3.0, 4.0]]), ("swap-2.0", [[4.0, 3.0]]), ("first", [[6.0, 4.0]]), (None, [[3.0, 4.0]]),
            ("swap-2.0", [[4.0, 3.0]]),
        ):  # fmt: skip
            assert numbers(pipe(x=[[3, 4]], adapter=adapter)) == expected
        assert numbers(pipe(x=[[3, 4]])) == [[3.0, 4.0]]


def test_r18_a_port_that_an_adapter_has_nothing_for_gets_zeros(tmp_path: Path) -> None:
    path = bundle(
        tmp_path / "x.genai",
        {"two": TWO},
        {
            "adapters": {"long": {"graphs": {"two": "long.onnx"}}, "high": {"graphs": {"two": "high.onnx"}}},
            "inputs": {"x": {"type": "f32", "dims": [1]}},
            "outputs": {"y": {"type": "f32", "dims": [1]}, "seen": {"type": "f32", "dims": ["M"]}},
            "steps": [
                {"run": "two", "in": {"x": "x"}, "out": {"y": "z", "seen": "a"}},
                {"emit": {"y": "z", "seen": "a"}},
            ],
        },
        **{
            "long.onnx": model("long () => (float[3] a) <float[3] a = {1.0, 2.0, 3.0}> { }"),
            "high.onnx": model("high () => (float[1] b) <float[1] b = {10.0}> { }"),
        },
    )
    with genai_runner.load(path) as pipe:
        found = {name: pipe(x=[1], adapter=name).outputs for name in (None, "long", "high")}
    assert {name: one["y"].tolist() for name, one in found.items()} == {None: [1], "long": [1], "high": [11]}
    assert {name: one["seen"].tolist() for name, one in found.items()} == {None: [0], "long": [1, 2, 3], "high": [0]}


@pytest.mark.parametrize("name", ["swop", "", 3])
def test_r19_an_unknown_adapter_is_refused_with_those_that_there_are(name: Any, columns: Path) -> None:
    with genai_runner.load(columns) as pipe, pytest.raises(UsageError, match=r"no adapter .* It has first, swap-2\.0"):
        pipe(x=[[3, 4]], adapter=name)


def test_r19_a_bundle_without_adapters_says_so(tmp_path: Path) -> None:
    bound = {"a": [[0.0], [0.0]], "b": [[0.0, 0.0]]}
    manifest = change(ADAPTERS, ("adapters", ...), ("tests", ...), ("steps", 0, "with", bound))
    path = bundle(tmp_path / "x.genai", {}, manifest, **{"scale.onnx": ADAPTER_MEMBERS["scale.onnx"]})
    with genai_runner.load(path) as pipe, pytest.raises(UsageError, match="It has none"):
        pipe(x=[[3, 4]], adapter="swap")


SUMS = """
name: sums
graphs:
  sum:
    onnx: |
      sum (float[1] x, float[1] past, float[n] a) => (float[1] y, float[1] present) {
        s = Add(x, past)
        z = ReduceSum(a)
        y = Add(s, z)
        present = Identity(y)
      }
adapters:
  more: {graphs: {sum: {onnx: "more () => (float[2] a) <float[2] a = {100.0, 0.5}> { }"}}}
inputs: {x: "f32[1]"}
outputs: {y: "f32[1]"}
state: {total: {graph: sum, ports: {past: present}, update: replace, scope: session}}
steps:
- {run: sum, in: {x: x}, out: {y: y}}
- emit: {y: y}
tests:
- {in: {x: [1], adapter: more}, out: {y: [101.5]}}
"""


@pytest.mark.parametrize(("first", "other"), [("more", None), (None, "more")])
def test_r19_a_session_stays_with_its_adapter(first: str | None, other: str | None, tmp_path: Path) -> None:
    step = 101.5 if first else 1.0
    with genai_runner.load(build(SUMS, tmp_path)) as pipe:
        session = pipe.session()
        assert numbers(session(x=[1], adapter=first)) == [step]
        with pytest.raises(UsageError, match=r"the session began with .*more|not with the adapter 'more'"):
            session(x=[1], adapter=other)
        assert numbers(session(x=[1], adapter=first)) == [2 * step]
        assert numbers(pipe.session()(x=[1], adapter=other)) == [102.5 - step]


def test_a_request_that_was_refused_chooses_no_adapter_for_the_session(tmp_path: Path) -> None:
    with genai_runner.load(build(SUMS, tmp_path)) as pipe:
        session = pipe.session()
        with pytest.raises(UsageError, match="'x'"):
            session(adapter="more")
        assert numbers(session(x=[1])) == [1.0]


def test_tensors_of_a_shard_stay_where_they_lie_and_valid_after_close(tmp_path: Path) -> None:
    values = "{" + ", ".join(f"{number}.0" for number in range(600)) + "}"
    tensors = f"<float[300,2] a = {values}, float[2,300] b = {values}>"
    recipe = f"""
name: wide
graphs: {{scale: {{onnx: "{WIDE.strip()}"}}}}
adapters:
  two: {{graphs: {{scale: {{onnx: "two () => (float[300,2] a, float[2,300] b) {tensors} {{ }}"}}}}}}
inputs: {{x: "f32[1,300]"}}
outputs: {{y: "f32[1,300]"}}
steps:
- {{run: scale, in: {{x: x}}, out: {{y: y}}}}
- emit: {{y: y}}
"""
    path = build(recipe, tmp_path)
    pipe = genai_runner.load(path)
    assert "weights/adapter-two-00.bin" in pipe.bundle.members
    graph = pipe.graph("scale", adapter="two")
    plain = pipe.graph("scale")
    pipe.close()
    a, b, x = np.arange(600.0).reshape(300, 2), np.arange(600.0).reshape(2, 300), np.ones((1, 300), np.float32)
    np.testing.assert_allclose(graph.run({"x": x}, ["y"])["y"], x @ a @ b, rtol=1e-5)
    np.testing.assert_array_equal(plain.run({"x": x}, ["y"])["y"], np.zeros((1, 300)))


class Counted:
    """A graph of onnxruntime that notes what it is fed."""

    def __init__(self, graph: Graph, fed: list[dict[str, Tensor]]) -> None:
        self.graph, self.fed = graph, fed

    def run(
        self,
        feeds: Mapping[str, Tensor],
        want: Collection[str],
        *,
        keep: Collection[str] = (),
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Tensor]:
        self.fed.append(dict(feeds))
        return self.graph.run(feeds, want, keep=keep, into=into)

    def array(self, tensor: Tensor) -> Array:
        return self.graph.array(tensor)

    def fork(self) -> Graph:
        return Counted(self.graph.fork(), self.fed)


class CountedBackend:
    name = "onnxruntime"

    def __init__(self) -> None:
        self.fed: list[dict[str, Tensor]] = []

    def load(self, graph: str, model: bytes, weights: Mapping[str, memoryview], options: LoadOptions) -> Graph:
        return Counted(find_backend(self.name).load(graph, model, weights, options), self.fed)


def test_every_run_is_given_the_same_arrays_so_that_nothing_is_bound_anew(columns: Path) -> None:
    backend = CountedBackend()
    with genai_runner.load(columns, backend) as pipe:
        for adapter in (None, None, "first", "first"):
            pipe(x=[[3, 4]], adapter=adapter)
    first, second, third, fourth = backend.fed
    assert first["a"] is second["a"]
    assert third["a"] is fourth["a"]
    assert first["a"].shape == (2, 1)
    assert not first["a"].any()
