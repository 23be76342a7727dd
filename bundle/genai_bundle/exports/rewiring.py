# SPDX-License-Identifier: Apache-2.0
"""Inputs that another runtime does not know, worked out inside the graph from those that it feeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from genai_bundle.errors import UsageError
from genai_bundle.exports.generator import Generator
from genai_bundle.manifest import Json

OPSET = 15
"""Since then Shape has a start and an end, and ReduceSum its axes as an input, as written here."""

EVERY = 2**31 - 1
"""A number of last positions that means all of them, and that engines with 32-bit constants keep as it is."""

PREFIX = "export/"


def rewire(model: onnx.ModelProto, found: Generator, mask: str) -> None:
    """Leave only ids, mask, positions and caches as inputs of the model, which is changed.

    mask: the name of the attention mask [batch, total], which becomes an input where the graph has none.

    Raises:
        UsageError: an input cannot be worked out.
    """
    graph = model.graph
    derived = {port: role for port, role in found.feeds.items() if role in ("last", "total", "len")}
    constants = dict(literals(model, found))
    constants |= {port: found.context or 0 for port, role in found.feeds.items() if role == "capacity"}
    if derived:
        _check_opset(model)
        _ensure_mask(model, found, mask)
    nodes: list[onnx.NodeProto] = []
    for port, role in derived.items():
        nodes += _derive(graph, port, role, mask, found)
    for port, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(_typed(graph, port, value), port))
    _drop_inputs(graph, {*derived, *constants})
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])


def literals(model: onnx.ModelProto, found: Generator) -> Mapping[str, Json]:
    """The constant inputs. The one by which the logits are cut to the last positions asks for all of them: a runtime
    that does not know the input picks the last position itself."""
    [logits] = [value for value in model.graph.output if value.name == found.logits]
    dims = logits.type.tensor_type.shape.dim
    cut = dims[1].dim_param if len(dims) == 3 else ""
    return {port: EVERY if port == cut else value for port, value in found.literals.items()}


def _check_opset(model: onnx.ModelProto) -> None:
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if max(versions, default=0) < OPSET:
        raise UsageError(f"the graph is of opset {max(versions, default=0)}, at least {OPSET} is needed to rewrite it")


def _ensure_mask(model: onnx.ModelProto, found: Generator, mask: str) -> None:
    if any(value.name == mask for value in model.graph.input):
        return
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    if mask in names:
        raise UsageError(f"the graph uses the name {mask!r} for something else")
    ids = found.port("positions") or found.port("ids")
    dtype = next(value.type.tensor_type.elem_type for value in model.graph.input if value.name == ids)
    model.graph.input.insert(1, helper.make_tensor_value_info(mask, dtype, ["batch", "total"]))


def _derive(graph: onnx.GraphProto, port: str, role: str, mask: str, found: Generator) -> Sequence[onnx.NodeProto]:
    """Nodes whose result has the port's name.

    last [batch]: the index of the last token that counts. total, len: tokens with and before this run, over all rows.
    """
    elem, rank = _port(graph, port)
    at = f"{PREFIX}{port}"

    def name(part: str) -> str:
        return f"{at}/{part}"

    def const(part: str, values: Sequence[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name(part)))
        return name(part)

    if role == "last":
        nodes = [
            helper.make_node("Cast", [mask], [name("mask")], name("mask"), to=TensorProto.INT64),
            helper.make_node("ReduceSum", [name("mask"), const("axis", [1])], [name("sum")], name("sum"), keepdims=0),
            helper.make_node("Sub", [name("sum"), const("one", [1])], [name("last")], name("last")),
        ]
    else:
        nodes = [helper.make_node("Shape", [mask], [name("total")], name("total"), start=1, end=2)]
    result = nodes[-1].output[0]
    if role == "len":
        ids = found.port("ids") or ""
        nodes.append(helper.make_node("Shape", [ids], [name("new")], name("new"), start=1, end=2))
        nodes.append(helper.make_node("Sub", [result, name("new")], [name("len")], name("len")))
        result = name("len")
    if rank != 1:
        shape = [-1, *[1] * (rank - 1)] if rank else []
        nodes.append(helper.make_node("Reshape", [result, const("shape", shape)], [name("shaped")], name("shaped")))
        result = name("shaped")
    return [*nodes, helper.make_node("Cast", [result], [port], name("cast"), to=elem)]


def _port(graph: onnx.GraphProto, port: str) -> tuple[int, int]:
    """Element type and rank."""
    tensor = next(value.type.tensor_type for value in graph.input if value.name == port)
    return tensor.elem_type, len(tensor.shape.dim)


def _typed(graph: onnx.GraphProto, port: str, value: Json) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    elem, _ = _port(graph, port)
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
    array = np.array(value, helper.tensor_dtype_to_np_dtype(elem))
    return array


def _drop_inputs(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    gone = set(names)
    kept = [value for value in graph.input if value.name not in gone]
    del graph.input[:]
    graph.input.extend(kept)
