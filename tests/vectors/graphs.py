# SPDX-License-Identifier: Apache-2.0
"""Vectors of the graph rules G1 to G19: valid graphs with external data, and what an attacker would make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
import onnx.parser
from onnx import TensorProto, helper

from .vector import Vector, unpacked

GRAPH = "add.onnx"
SHARD = "weights/add-00.bin"
DATA = bytes(range(256))
DOCUMENT: dict[str, Any] = {
    "format": "1.0",
    "name": "add",
    "graphs": {"add": {"file": GRAPH}},
    "inputs": {"x": {"type": "f32", "dims": ["N", 4]}},
    "outputs": {"y": {"type": "f32", "dims": ["N", 4]}},
    "steps": [{"run": "add", "in": {"x": "x"}, "out": {"y": "y"}}, {"emit": {"y": "y"}}],
}
CONTRIB = {**DOCUMENT, "requires": ["domain:com.microsoft"]}
SIGNATURE = "add (float[N,4] x) => (float[N,4] y)"

Change = Callable[[onnx.ModelProto], None]


def external(name: str, data_type: int, dims: list[int], **told: str) -> onnx.TensorProto:
    """A tensor whose bytes lie in the shard; `told` replaces location, offset or length."""
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    facts = {"location": SHARD, "offset": "0", "length": "16"} | told
    tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in facts.items())
    return tensor


def model(
    body: str = "y = Add(x, w)", head: str = 'ir_version: 10, opset_import: ["" : 23]', tail: str = ""
) -> onnx.ModelProto:
    """The valid model: f32[4] `w`, in the shard, is added to `x`."""
    made = onnx.parser.parse_model(f"<{head}> {SIGNATURE} {{ {body} }} {tail}")
    made.graph.initializer.append(external("w", TensorProto.FLOAT, [4]))
    return made


def valid() -> Iterator[Vector]:
    def good(name: str, title: str, made: onnx.ModelProto, document: dict[str, Any] = DOCUMENT) -> Vector:
        members = {GRAPH: made.SerializeToString(deterministic=True), SHARD: DATA}
        return Vector(f"graph-{name}", title, unpacked(document, members), layer="graph")

    yield good("external", "A graph whose weights lie in a shard", model())
    tied = model("t = Add(x, w)  y = Mul(t, v)")
    tied.graph.initializer.append(external("v", TensorProto.FLOAT, [4]))
    yield good("tied", "Two tensors of the same bytes", tied)
    nibbles = model("q = DequantizeLinear(w, s)  y = Add(x, q)")
    nibbles.graph.initializer[0].CopyFrom(external("w", TensorProto.UINT4, [1, 3], offset="64", length="2"))
    nibbles.graph.initializer.append(helper.make_tensor("s", TensorProto.FLOAT, [], [0.5]))
    del nibbles.graph.node[:]
    nibbles.graph.node.extend(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["q"]), helper.make_node("Identity", ["x"], ["y"])]
    )
    yield good("packed", "Three 4-bit elements take two bytes", nibbles)
    function = '<domain: "own", opset_import: ["" : 23]> twice (a) => (b) { b = Add(a, a) }'
    head = 'ir_version: 10, opset_import: ["" : 23, "own" : 1]'
    yield good(
        "function",
        "A function of the model, in a domain of its own",
        model("t = own.twice(x)  y = Add(t, w)", head, function),
    )
    head = 'ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]'
    gelu = model("t = com.microsoft.Gelu(x)  y = Add(t, w)", head)
    yield good("contrib", "A default graph with an operator that the manifest requires", gelu, CONTRIB)


def invalid() -> Iterator[Vector]:
    for group in (_models, _operators, _locations, _places, _names):
        yield from group()


def _bad(name: str, rule: str, title: str, made: onnx.ModelProto | bytes, change: Change | None = None) -> Vector:
    if isinstance(made, onnx.ModelProto):
        if change is not None:
            change(made)
        made = made.SerializeToString(deterministic=True)
    return Vector(f"graph-{name}", title, unpacked(DOCUMENT, {GRAPH: made, SHARD: DATA}), rule, "graph")


def _models() -> Iterator[Vector]:
    yield _bad("no-protobuf", "G1", "Not a protobuf message", b"\xff" * 40)
    yield _bad("no-graph", "G1", "A model without a graph", onnx.ModelProto(ir_version=10))
    yield _bad("cut", "G1", "A model that ends early", model().SerializeToString(deterministic=True)[:-3])
    no_text = model().SerializeToString(deterministic=True).replace(b"weights/add", b"\x80eights/add")
    yield _bad("no-text", "G1", "A location that is not UTF-8", no_text)
    yield _bad("ir-14", "G2", "IR version 14", model(head='ir_version: 14, opset_import: ["" : 23]'))
    yield _bad("ir-2", "G2", "IR version 2", model(head='ir_version: 2, opset_import: ["" : 23]'))
    yield _bad("opset-27", "G3", "Operator set 27", model(head='ir_version: 10, opset_import: ["" : 27]'))
    twice = 'ir_version: 10, opset_import: ["" : 23, "ai.onnx" : 20]'
    yield _bad("opset-twice", "G3", "Two versions of one operator set, under its two names", model(head=twice))
    function = '<domain: "own", opset_import: ["" : 27]> twice (a) => (b) { b = Add(a, a) }'
    head = 'ir_version: 10, opset_import: ["" : 23, "own" : 1]'
    yield _bad("function-opset", "G3", "A function with operator set 27", model("y = own.twice(x)", head, function))


def _operators() -> Iterator[Vector]:
    own = 'ir_version: 10, opset_import: ["" : 23, "own" : 1]'
    yield _bad("undeclared", "G4", "An operator of a domain that is not imported", model("y = other.Thing(x, w)"))
    yield _bad("custom", "G5", "An operator of a custom library", model("y = own.Thing(x, w)", own))
    shadow = '<domain: "com.microsoft", opset_import: ["" : 23]> Gelu (a) => (b) { b = Add(a, a) }'
    contrib = 'ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]'
    yield _bad(
        "shadow", "G5", "A function in the place of an operator", model("y = com.microsoft.Gelu(x)", contrib, shadow)
    )
    yield _bad(
        "contrib",
        "G6",
        "A default graph with an operator that is not required",
        model("t = com.microsoft.Gelu(x)  y = Add(t, w)", contrib),
    )
    head = '<domain: "own", opset_import: ["" : 23, "own" : 1]>'
    circle = f"{head} f (a) => (b) {{ b = own.g(a) }} {head} g (a) => (b) {{ b = own.f(a) }}"
    yield _bad("recursion", "G8", "Two functions that call each other", model("y = own.f(x)", own, circle))
    compiled = model("y = com.microsoft.EPContext(x)", contrib)
    yield _bad("compiled", "G17", "A compiled blob", compiled)

    def options(made: onnx.ModelProto) -> None:
        made.metadata_props.add(key="ort_config", value='{"session_options": {}}')

    yield _bad("options", "G17", "Options of an engine", model(), options)

    def training(made: onnx.ModelProto) -> None:
        made.training_info.add().algorithm.CopyFrom(made.graph)

    yield _bad("training", "G19", "A training graph", model(), training)

    def sparse(made: onnx.ModelProto) -> None:
        item = made.graph.sparse_initializer.add(dims=[8])
        item.values.CopyFrom(external("s", TensorProto.FLOAT, [4]))
        item.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [4], [0, 1, 2, 3]))

    yield _bad("sparse", "G19", "A sparse tensor with external data", model(), sparse)


def _weight(told: dict[str, str], more: tuple[tuple[str, str], ...] = (), drop: str = "", **fields: Any) -> Change:
    """Changes the tensor in the shard: its external data (`told`, `more` appended, `drop` left out), its fields."""

    def change(made: onnx.ModelProto) -> None:
        tensor = external("w", TensorProto.FLOAT, [4], **told)
        kept = [(entry.key, entry.value) for entry in tensor.external_data if entry.key != drop]
        del tensor.external_data[:]
        for key, value in (*kept, *more):
            tensor.external_data.add(key=key, value=value)
        tensor.MergeFrom(TensorProto(**fields))
        made.graph.initializer[0].CopyFrom(tensor)

    return change


def _locations() -> Iterator[Vector]:
    cases: dict[str, tuple[str, str, Change]] = {
        "address": ("G7", "An address in the memory of the process", _weight({"location": "*/_ORT_MEM_ADDR_/*"})),
        "other-file": ("G7", "A file of the machine", _weight({"location": "/etc/passwd"})),
        "upwards": ("G7", "A path that leads out of the bundle", _weight({"location": "weights/../add.onnx"})),
        "not-weights": ("G7", "A member that is no shard", _weight({"location": GRAPH})),
        "absent": ("G7", "A shard that the bundle does not have", _weight({"location": "weights/add-01.bin"})),
        "key": ("G9", "A key that the format does not know", _weight({}, (("checksum", "0"),))),
        "location-twice": ("G10", "Two locations", _weight({}, (("location", "/etc/passwd"),))),
        "no-length": ("G11", "No length", _weight({}, drop="length")),
        "hexadecimal": ("G11", "An offset that is no decimal number", _weight({"offset": "0x40"})),
        "negative": ("G11", "A negative offset", _weight({"offset": "-64"})),
        "both": ("G11", "Data in the shard and in the graph", _weight({}, raw_data=bytes(16))),
        "past-end": ("G12", "Bytes past the end of the shard", _weight({"offset": "256"})),
        "far": ("G12", "An offset near 2^63", _weight({"offset": "9223372036854775744"})),
        "unaligned": ("G13", "An offset that is no multiple of 64", _weight({"offset": "4"})),
        "length": ("G14", "Fewer bytes than the dims need", _weight({"length": "8"})),
        "dims": ("G14", "Dims that need more bytes than there are", _weight({}, dims=[1 << 40])),
        "negative-dim": ("G14", "A negative dim", _weight({}, dims=[-1, -1])),
    }
    for name, (rule, title, change) in cases.items():
        yield _bad(name, rule, title, model(), change)

    def flag(made: onnx.ModelProto) -> None:
        made.graph.initializer[0].data_location = TensorProto.DEFAULT

    yield _bad("flag", "G11", "External data that is not flagged as such", model(), flag)

    def text(made: onnx.ModelProto) -> None:
        made.graph.initializer[0].data_type = TensorProto.STRING

    yield _bad("text", "G15", "External data of a tensor of texts", model(), text)

    def unknown(made: onnx.ModelProto) -> None:
        made.graph.initializer[0].data_type = 99

    yield _bad("type", "G15", "An element type that does not exist", model(), unknown)


def _places() -> Iterator[Vector]:
    constant = helper.make_node("Constant", [], ["c"], value=external("v", TensorProto.FLOAT, [4]))

    def attribute(made: onnx.ModelProto) -> None:
        made.graph.node.insert(0, constant)

    yield _bad("attribute", "G16", "External data in an attribute", model(), attribute)

    def branch(made: onnx.ModelProto) -> None:
        inner = helper.make_graph(
            [helper.make_node("Identity", ["v"], ["b"])], "inner", [], [helper.make_empty_tensor_value_info("b")]
        )
        inner.initializer.append(external("v", TensorProto.FLOAT, [4]))
        yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
        made.graph.node.extend([yes, helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=inner)])

    yield _bad("branch", "G16", "External data inside of a branch", model(), branch)
    own = 'ir_version: 10, opset_import: ["" : 23, "own" : 1]'
    function = '<domain: "own", opset_import: ["" : 23]> twice (a) => (b) { b = Add(a, a) }'

    def body(made: onnx.ModelProto) -> None:
        made.functions[0].node.insert(0, constant)

    yield _bad("function", "G16", "External data inside of a function", model("y = own.twice(x)", own, function), body)


def _names() -> Iterator[Vector]:
    def weights(made: onnx.ModelProto) -> None:
        made.graph.initializer.append(external("w", TensorProto.FLOAT, [4], offset="64"))

    def ports(made: onnx.ModelProto) -> None:
        made.graph.input.append(made.graph.input[0])

    def assigned(made: onnx.ModelProto) -> None:
        made.graph.node.append(helper.make_node("Neg", ["x"], ["w"]))

    yield _bad("weights-twice", "G18", "Two initializers of one name", model(), weights)
    yield _bad("ports-twice", "G18", "Two inputs of one name", model(), ports)
    yield _bad("assigned-twice", "G18", "A node that assigns an initializer's name", model(), assigned)
