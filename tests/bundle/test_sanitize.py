# SPDX-License-Identifier: Apache-2.0
"""The graph rules beyond the vectors: what must pass, what stays cheap, and what ports a graph shows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from genai_bundle.errors import GraphError
from genai_bundle.ports import Port
from genai_bundle.sanitize import _BITS, STANDARD, ports_of, sanitize
from vectors.graphs import DATA, SHARD, external, model

MEMBERS = {SHARD: len(DATA), "add.onnx": 100}


def read(made: onnx.ModelProto, members: Mapping[str, int] = MEMBERS) -> onnx.ModelProto:
    return sanitize(made.SerializeToString(), file="add.onnx", members=members)


def rule(made: onnx.ModelProto | bytes) -> str | None:
    data = made if isinstance(made, bytes) else made.SerializeToString()
    with pytest.raises(GraphError) as caught:
        sanitize(data, file="add.onnx", members=MEMBERS)
    assert (caught.value.where or "").startswith("add.onnx")
    return caught.value.rule


def test_a_good_graph_comes_back_whole() -> None:
    made = model()
    assert read(made) == made


def test_weights_are_not_read() -> None:
    """A tensor of 8 EiB is a few bytes of text."""
    huge = 1 << 63
    made = model()
    made.graph.initializer[0].CopyFrom(external("w", TensorProto.FLOAT, [huge // 4], length=str(huge)))
    assert read(made, {SHARD: huge})


@pytest.mark.parametrize("name", TensorProto.DataType.keys())
def test_every_element_type_is_known(name: str) -> None:
    """A type that a newer onnx brings must be given its size, or be refused on purpose as those of 6 bits (IR 14)."""
    refused = ("UNDEFINED", "STRING", "FLOAT6E2M3", "FLOAT6E3M2")
    assert (TensorProto.DataType.Value(name) in _BITS) != (name in refused)


@pytest.mark.parametrize("data_type", sorted(_BITS))
def test_sizes_are_those_of_onnx(data_type: int) -> None:
    size = -(-7 * _BITS[data_type] // 8)
    assert helper.make_tensor("t", data_type, [7], bytes(size), raw=True).raw_data == bytes(size)
    made = model()
    made.graph.initializer[0].CopyFrom(external("w", data_type, [7], length=str(size)))
    assert read(made)
    made.graph.initializer[0].CopyFrom(external("w", data_type, [7], length=str(size + 1)))
    assert rule(made) == "G14"


@pytest.mark.parametrize("dims", [[], [0], [3, 0, 2]])
def test_scalars_and_empty_tensors(dims: list[int]) -> None:
    made = model()
    length = 4 if dims == [] else 0
    made.graph.initializer[0].CopyFrom(external("w", TensorProto.FLOAT, dims, length=str(length)))
    assert read(made)


@pytest.mark.parametrize("value", ["", " 0", "+0", "00", "0.0", "1e2", "0\n", "٠", "9" * 40, "0b1", "1_0"])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_numbers_have_one_spelling(key: str, value: str) -> None:
    made = model()
    made.graph.initializer[0].CopyFrom(external("w", TensorProto.FLOAT, [4], **{key: value}))
    assert rule(made) == "G11"


@pytest.mark.parametrize("drop", ["location", "offset", "length"])
def test_each_key_is_needed(drop: str) -> None:
    made = model()
    kept = [entry for entry in made.graph.initializer[0].external_data if entry.key != drop]
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL, external_data=kept)
    made.graph.initializer[0].CopyFrom(tensor)
    assert rule(made) == "G11"


def test_depth_is_bounded() -> None:
    """Protobuf gives up before Python's stack does."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(2000):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    assert rule(b"\x08\x0a" + field(7, graph) + field(8, b"\x10\x17")) == "G1"
    flat = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, b"")))
    assert sanitize(b"\x08\x0a" + field(7, flat) + field(8, b"\x10\x17"), file="add.onnx", members={})


def functions(calls: Mapping[str, list[str]]) -> onnx.ModelProto:
    made = model()
    made.opset_import.add(domain="own", version=1)
    for name, called in calls.items():
        nodes = [helper.make_node(other, ["a"], [f"t{index}"], domain="own") for index, other in enumerate(called)]
        nodes.append(helper.make_node("Identity", ["a"], ["b"]))
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("own", 1)]
        made.functions.append(helper.make_function("own", name, ["a"], ["b"], nodes, opsets))
    return made


def test_functions_may_call_functions() -> None:
    chain = {f"f{index}": [f"f{index + 1}", f"f{index + 1}"] for index in range(3000)} | {"f3000": []}
    assert read(functions(chain))


@pytest.mark.parametrize("calls", [{"f": ["f"]}, {"f": ["g"], "g": ["h"], "h": ["k", "g"], "k": []}])
def test_functions_may_not_call_themselves(calls: dict[str, list[str]]) -> None:
    assert rule(functions(calls)) == "G8"


def test_a_call_inside_of_a_branch_counts() -> None:
    made = functions({"f": []})
    branch = helper.make_graph([helper.make_node("f", ["a"], ["c"], domain="own")], "inner", [], [])
    made.functions[0].node.append(helper.make_node("If", ["a"], ["d"], then_branch=branch, else_branch=branch))
    assert rule(made) == "G8"


def test_two_functions_of_one_name() -> None:
    made = functions({"f": []})
    made.functions.append(made.functions[0])
    assert rule(made) == "G18"


def test_names_inside_of_a_branch() -> None:
    """Branches may assign the same names as each other, but not one name twice."""
    made = model()
    node = helper.make_node("Identity", ["x"], ["b"])
    once = helper.make_graph([node], "once", [], [helper.make_empty_tensor_value_info("b")])
    twice = helper.make_graph([node, node], "twice", [], [helper.make_empty_tensor_value_info("b")])
    made.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=once, else_branch=once))
    assert read(made)
    made.graph.node.append(helper.make_node("If", ["x"], ["k"], then_branch=once, else_branch=twice))
    assert rule(made) == "G18"


def test_domains_are_the_callers_choice() -> None:
    head = 'ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]'
    data = model("t = com.microsoft.Gelu(x)  y = Add(t, w)", head).SerializeToString()
    assert sanitize(data, file="add.onnx", members=MEMBERS)
    with pytest.raises(GraphError) as caught:
        sanitize(data, file="add.onnx", members=MEMBERS, domains=STANDARD)
    assert caught.value.rule == "G6"
    assert "domain:com.microsoft" in str(caught.value)


GOOD = model().SerializeToString()


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=3), st.integers(0, 3)), max_size=3))
def test_any_bytes_pass_or_are_refused(edits: list[tuple[int, bytes, int]]) -> None:
    data = GOOD
    for at, new, gone in edits:
        data = data[:at] + new + data[at + gone :]
    try:
        made = sanitize(data, file="add.onnx", members=MEMBERS)
        ports_of(made)
    except GraphError as error:
        assert error.rule  # noqa: PT017


def test_ports() -> None:
    made = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]>'
        "g (float16[batch, 8] a, int64 b, string[n] c, bfloat16[2, ?] d) => (bool[k] e, uint4[2] f) {}"
    )
    made.graph.initializer.append(helper.make_tensor("b", TensorProto.INT64, [], [1]))
    ports = ports_of(made)
    assert list(itertools.chain(ports.inputs.values(), ports.outputs.values())) == [
        Port("a", "f16", ("batch", 8)),
        Port("b", "i64", (), optional=True),
        Port("c", "text", ("n",)),
        Port("d", "bf16", (2, "")),
        Port("e", "bool", ("k",)),
        Port("f", "uint4", (2,)),
    ]


def test_a_port_that_is_no_tensor() -> None:
    made = onnx.ModelProto()
    made.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1]))
    assert ports_of(made).inputs["s"].dtype == "sequence"
