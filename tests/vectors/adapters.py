# SPDX-License-Identifier: Apache-2.0
"""Vectors of adapters: a valid bundle with two, and one broken for each rule that they have to keep."""

from __future__ import annotations

from collections.abc import Iterator

from .manifest_faults import fault
from .manifests import Case, Document, graph

SCALE = """scale (float[N,2] x, float[2,rank] a, float[rank,2] b) => (float[N,2] y) {
    low = MatMul (x, a)
    change = MatMul (low, b)
    y = Add (x, change)
  }"""
SWAP = """swap () => (float[2,2] a, float[2,2] b)
  <float[2,2] a = {1.0, 0.0, 0.0, 1.0}, float[2,2] b = {-1.0, 1.0, 1.0, -1.0}> { }"""
FIRST = "first () => (float[2,1] a, float[1,2] b) <float[2,1] a = {1.0, 0.0}, float[1,2] b = {1.0, 0.0}> { }"
ADAPTERS: Document = {
    "format": "1.0",
    "name": "adapters",
    "graphs": {"scale": {"file": "scale.onnx"}},
    "adapters": {
        "swap-2.0": {"graphs": {"scale": "adapter-swap.onnx"}, "description": "exchanges the columns"},
        "first": {"graphs": {"scale": "adapter-first.onnx"}},
    },
    "inputs": {"x": {"type": "f32", "dims": ["N", 2]}},
    "outputs": {"y": {"type": "f32", "dims": ["N", 2]}},
    "steps": [{"run": "scale", "in": {"x": "x"}, "out": {"y": "moved"}}, {"emit": {"y": "moved"}}],
    "tests": [
        {"in": {"x": [[1, 2]]}, "out": {"y": [[1, 2]]}},
        {"in": {"x": [[1, 2]], "adapter": "swap-2.0"}, "out": {"y": [[2, 1]]}},
        {"in": {"x": [[1, 2]], "adapter": "first"}, "out": {"y": [[2, 2]]}},
    ],
}
ADAPTER_MEMBERS = {
    "scale.onnx": graph(SCALE),
    "adapter-swap.onnx": graph(SWAP),
    "adapter-first.onnx": graph(FIRST),
}


def valid() -> Iterator[Case]:
    yield Case("adapters", "Two adapters of different rank, tests with either and with none", ADAPTERS, ADAPTER_MEMBERS)


def faults() -> Iterator[Case]:
    """The invalid cases."""
    for group in (_forms, _grammar, _tensors):
        yield from group()


def _forms() -> Iterator[Case]:
    swap = {"graphs": {"scale": "adapter-swap.onnx"}}
    first = ("adapters", "first")
    yield fault("M10", "adapter-name", "An adapter's name that is no word", "adapters", ("adapters", "my own", swap))
    yield fault("M7", "adapter-graphs", "An adapter without graphs", "adapters", (*first, "graphs", ...))
    yield fault("M9", "adapter-empty", "An adapter of no graph", "adapters", (*first, "graphs", {}))
    yield fault("M16", "adapter-folder", "An adapter in a folder", "adapters", (*first, "graphs", "scale", "a/f.onnx"))
    yield fault("M8", "adapter-key", "An unknown key", "adapters", (*first, "rank", 8))


def _grammar() -> Iterator[Case]:
    swap = ("adapters", "swap-2.0")
    yield fault("P30", "adapter-graph", "An adapter of no graph", "adapters", (*swap, "graphs", {"scala": "x.onnx"}))
    yield fault(
        "P24", "adapter-unlisted", "An adapter that is not listed", "adapters", (*swap, "graphs", "scale", "swap.onnx")
    )
    yield fault("P27", "adapter-test", "A test of no adapter", "adapters", ("tests", 1, "in", "adapter", "swop"))
    yield fault("P27", "adapter-none", "A test of an adapter where there are none", "small",
                ("tests", [{"in": {"x": [1], "adapter": "swap"}, "out": {"y": [2]}}]))  # fmt: skip
    hidden = {"type": "text", "default": ""}
    yield fault("P29", "adapter-input", "An input named adapter", "adapters", ("inputs", "adapter", hidden))
    yield fault("G22", "adapter-fed", "A port that a step and adapters feed", "adapters", ("steps", 0, "in", "a", "x"))


def _tensors() -> Iterator[Case]:
    def given(rule: str, name: str, title: str, text: str) -> Case:
        return fault(rule, f"adapter-{name}", title, "adapters", members={"adapter-first.onnx": graph(text)})

    node = "first () => (float[2,1] a, float[1,2] b) <float[1,2] b = {1.0, 0.0}> { a = Transpose (b) }"
    yield given("G27", "node", "An adapter that computes", node)
    hidden_one = FIRST.replace("(float[2,1] a, float[1,2] b)", "(float[2,1] a)", 1)
    yield given("G27", "hidden", "An initializer that is no output", hidden_one)
    yield given("G27", "declared", "Dims declared otherwise", FIRST.replace("=> (float[2,1] a", "=> (float[2,2] a"))
    texts = 'first () => (string[2,1] a) <string[2,1] a = {"x", "y"}> { }'
    yield given("G27", "texts", "An adapter of texts", texts)
    cut = FIRST.replace("a = {1.0, 0.0}", "a = {1.0}")
    yield given("G27", "cut", "A tensor with half of its data", cut)
    yield given("G28", "port", "A tensor for no port", FIRST.replace(" b", " c"))
    longer = FIRST.replace("[2,1]", "[3,1]").replace("a = {1.0, ", "a = {1.0, 0.0, ")
    yield given("G28", "dims", "A tensor longer than its port", longer)
    yield given("G28", "rank", "Two lengths of one dim", "first () => (float[2,1] a, float[2,2] b) "
                "<float[2,1] a = {1.0, 0.0}, float[2,2] b = {1.0, 0.0, 0.0, 1.0}> { }")  # fmt: skip
    half = "first () => (float[2,2] a) <float[2,2] a = {1.0, 0.0, 0.0, 1.0}> { }"
    yield given("G28", "half", "A dim that is two in one port and one in another, which gets zeros", half)
    whole = FIRST.replace("float", "int64").replace(".0", "")
    yield given("G28", "type", "Whole numbers for a port of floats", whole)
    other = graph(SCALE.replace("float[2,rank] a, ", "").replace("x, a", "x, x"))
    yield fault(
        "G28",
        "adapter-variant",
        "A variant without a port of the adapters",
        "adapters",
        ("graphs", "scale", "variants", [{"name": "v", "when": {"backend": "any"}, "file": "scale.v.onnx"}]),
        members={"scale.v.onnx": other},
    )
