# SPDX-License-Identifier: Apache-2.0
"""Rewrites that make an exported graph small, readable and the same on every build. All of them work in place."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from genai_bundle.builder.variants.match import only_user
from genai_bundle.errors import SourceError

IR_VERSION = 10
"""Enough for every operator of opset 23, and read by every backend."""

_SCOPES = "pkg.torch.onnx.name_scopes"


def slice_before_head(model: ir.Model, *, indices: str, count: str) -> ir.Value:
    """Replace the input `indices` i64[n] (positions whose logits are wanted) by `count` i64[]: the last that many.

    The exporter traces the gather of positions before the output head; a slice says the same with a number that a
    manifest can state. Logits of all positions cost 1.2 GB at 2,048 positions of a 150 k vocabulary. 0, or more than
    there are, gives all positions.

    Returns:
        What is sliced: the hidden states of all positions.
    """
    graph = model.graph
    wanted = _port(graph, indices)
    # transpose(0, 1), gather rows, transpose back: how a gather along axis 1 is exported.
    column = only_user(wanted, "Unsqueeze")
    rows = only_user(column.outputs[0], "GatherND") if column else None
    before = rows.inputs[0].producer() if rows and rows.inputs[0] else None
    after = only_user(rows.outputs[0], "Transpose") if rows else None
    hidden = before.inputs[0] if before else None
    if not (rows and before and after and hidden and _swaps_first_two(before) and _swaps_first_two(after)):
        raise SourceError(f"the exported graph uses '{indices}' in a way that this exporter does not know")
    number, cut = _last(graph, hidden, count, before=after)
    cut.shape, cut.type = after.outputs[0].shape, after.outputs[0].type
    ir.convenience.replace_all_uses_with(after.outputs[0], cut)
    graph.remove([after, rows, column], safe=True)  # type: ignore[list-item]
    graph.inputs[graph.inputs.index(wanted)] = number
    return hidden


def keep_last(graph: ir.Graph, head: ir.Node, count: str) -> None:
    """Let the node `head` read only the last positions (axis 1) of its first input: as many as the new input says."""
    number, cut = _last(graph, head.inputs[0], count, before=head)
    head.replace_input_with(0, cut)
    graph.inputs.append(number)


def _last(graph: ir.Graph, hidden: ir.Value | None, count: str, *, before: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The new input `count` i64[], and that many of the last positions of `hidden`."""
    number = ir.Value(name=count, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    # The end is 2^31-1, not the largest int64: one backend saturates constants beyond 32 bits.
    axis, end = constant(graph, [1], "axis.1"), constant(graph, [2**31 - 1], "slice.end")
    negative = ir.node("Neg", [number])
    start = ir.node("Reshape", [negative.outputs[0], constant(graph, [1], "shape.1")])
    cut = ir.node("Slice", [hidden, start.outputs[0], end, axis])
    for node in (negative, start, cut):
        scope(node, repr(["num_logits"]))
    graph.insert_before(before, [negative, start, cut])
    return number, cut.outputs[0]


def scope(node: ir.Node, path: str | None) -> None:
    """Say which module a node belongs to; `path` is a list of names, outermost first, as Python writes it."""
    names = [name for name in ast.literal_eval(path) if name] if path else []
    node.metadata_props[_SCOPES] = repr(["", ".".join(names), ""])


def simplify_padding_mask(model: ir.Model, mask: str) -> None:
    """Read the padding mask as `mask[:, None, None, :]` where the exporter gathers it at every (row, key)."""
    graph = model.graph
    port = next((value for value in graph.inputs if value.name == mask), None)
    if port is None:
        return
    for view in [use.node for use in port.uses() if use.node.op_type == "Reshape"]:
        if _keeps_rows(view, port):
            ir.convenience.replace_all_uses_with(view.outputs[0], port)
    for gather in [node for node in graph if node.op_type == "GatherND"]:
        data, places = gather.inputs[0], gather.inputs[1]
        source = data.producer() if data is not None else None
        direct = data is port or (source is not None and source.op_type == "Cast" and source.inputs[0] is port)
        if data is None or places is None or not direct or not _is_grid(places):
            continue
        axes = constant(graph, [1, 2], "axes.1.2")
        view = ir.node("Unsqueeze", [data, axes], metadata_props=dict(gather.metadata_props))
        view.outputs[0].shape, view.outputs[0].type = gather.outputs[0].shape, gather.outputs[0].type
        graph.insert_before(gather, view)
        ir.convenience.replace_all_uses_with(gather.outputs[0], view.outputs[0])
        graph.remove(gather, safe=True)
    common.RemoveUnusedNodesPass()(model)


def state_lengths(model: ir.Model) -> None:
    """Write the length that is known where a reshape says -1: of no elements, an axis of length 0 beside it, none can
    be inferred.
    """
    graph = model.graph
    for reshape in [node for node in graph if node.op_type == "Reshape"]:
        wanted, out = reshape.inputs[1], reshape.outputs[0].shape
        joined = wanted.producer() if wanted is not None else None
        if joined is None or joined.op_type != "Concat" or out is None or len(joined.inputs) != len(out):
            continue
        for index, (part, length) in enumerate(zip(joined.inputs, out, strict=True)):
            known = part.const_value.numpy().tolist() if part is not None and part.const_value is not None else None
            if known == [-1] and isinstance(length, int):
                joined.replace_input_with(index, constant(graph, [length], f"length.{length}"))


def spread_input(model: ir.Model, port: str, like: str) -> None:
    """Let the input `port`, of the shape of the input `like`, have the length 1 on axis 1: one value for all places.

    A mask of a text without padding is ones, as many as there are tokens; a manifest can state one, but no number of
    them that a request decides.
    """
    graph = model.graph
    value, size = _port(graph, port), ir.node("Shape", [_port(graph, like)])
    node = ir.node("Expand", [value, size.outputs[0]])
    node.outputs[0].shape, node.outputs[0].type = _port(graph, like).shape, value.type
    for made in (node, size):
        made.metadata_props[_SCOPES] = repr(["", port, ""])
        graph.insert_before(graph[0], made)
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    node.replace_input_with(0, value)
    value.shape = ir.Shape([*(value.shape or [])[:1], f"{like}_or_1"])


def name_axes(model: ir.Model, names: Mapping[str, str]) -> None:
    """Rename symbolic axes. One that is not in `names` becomes anonymous: a tracer's counter says nothing."""

    def renamed(shape: ir.Shape | None) -> ir.Shape | None:
        if shape is None:
            return None
        return ir.Shape([dim if isinstance(dim, int) else names.get(dim.value or "") for dim in shape])

    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        value.shape = renamed(value.shape)


def constant(graph: ir.Graph, numbers: list[int], name: str) -> ir.Value:
    """The int64 initializer i64[len(numbers)] called `name`, made at the first call."""
    if name not in graph.initializers:
        tensor = ir.Tensor(np.array(numbers, np.int64), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def finish(model: ir.Model) -> None:
    """Merge equal nodes, order the graph, name nodes and values after their place in the model, drop all metadata."""
    common.CommonSubexpressionEliminationPass()(model)
    drop_unused(model)
    model.graph.sort()
    rename_values(model)
    strip(model)


def drop_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that no output needs. Inputs stay: they are the graph's interface."""
    common.RemoveUnusedNodesPass()(model)
    initializers = model.graph.initializers
    for name in [name for name, value in initializers.items() if not value.uses()]:
        del initializers[name]


def rename_values(model: ir.Model) -> None:
    """`model.layers.0.self_attn.q_proj/MatMul`: module path, operator, and a number where that is not unique.

    Ports and weights keep their names; small constants are numbered in the order of use.
    """
    graph = model.graph
    fixed = {id(value) for value in (*graph.inputs, *graph.outputs)}
    seen: Counter[str] = Counter()

    def unique(base: str) -> str:
        seen[base] += 1
        return base if seen[base] == 1 else f"{base}.{seen[base] - 1}"

    nodes = list(graph)
    # Two rounds, for a name of the first build of this graph may be the one that another value gets now.
    for number, node in enumerate(nodes):
        for value in node.outputs:
            if id(value) not in fixed:
                value.name = f"~{number}.{value.index()}"
    constants = [value for value in graph.initializers.values() if _is_constant(value)]
    for number, value in enumerate(constants):
        value.name = f"~constant.{number}"
    numbered = 0
    for node in nodes:
        name = unique(f"{_module(node)}/{node.op_type}")
        node.name = name
        for value in node.outputs:
            if id(value) not in fixed:
                value.name = name if value.index() == 0 else f"{name}:{value.index()}"
        for used in node.inputs:
            if used is not None and str(used.name).startswith("~constant."):
                used.name = f"constant.{numbered}"
                numbered += 1
        for body in _bodies(node):
            _rename_body(body, name)


def _bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs inside a Scan, Loop or If."""
    return [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]


def _rename_body(body: ir.Graph, prefix: str) -> None:
    """Number what a body assigns: a tracer's names there count what it traced before."""
    body.name = prefix
    for index, value in enumerate(body.inputs):
        value.name = f"{prefix}.in.{index}"
    for number, node in enumerate(body):
        node.name = f"{prefix}.{number}/{node.op_type}"
        for value in node.outputs:
            value.name = node.name if value.index() == 0 else f"{node.name}:{value.index()}"
        for inner in _bodies(node):
            _rename_body(inner, node.name)


def strip(model: ir.Model) -> None:
    """No stack traces (2 MB of them), versions or paths: they make two builds differ and tell about a machine."""
    graph = model.graph
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.domain, model.model_version = "genai-bundle", "", "", None
    model.doc_string, graph.doc_string, graph.name = None, None, "decoder"
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    _strip_nodes(graph)


def _strip_nodes(graph: ir.Graph) -> None:
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
        for body in _bodies(node):
            body.metadata_props.clear()
            for value in (*body.inputs, *(value for inner in body for value in inner.outputs)):
                value.metadata_props.clear()
                value.shape = None  # the axes there bear a tracer's counters
            _strip_nodes(body)


def _is_constant(value: ir.Value) -> bool:
    """A value that the tracer made up: not a weight, which reads its bytes lazily and has a module's name."""
    return not isinstance(value.const_value, ir.LazyTensor)


def _module(node: ir.Node) -> str:
    """The path of the module that a node was traced in. The last entry of the scopes is the traced operation itself."""
    raw = node.metadata_props.get(_SCOPES)
    scopes = [scope for scope in ast.literal_eval(raw)[:-1] if not scope.startswith("_")] if raw else []
    return scopes[-1] if scopes else ""


def _port(graph: ir.Graph, name: str) -> ir.Value:
    found = next((value for value in graph.inputs if value.name == name), None)
    if found is None:
        raise SourceError(f"the exported graph lacks the input '{name}'")
    return found


def _swaps_first_two(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == [1, 0, 2]


def _keeps_rows(view: ir.Node, port: ir.Value) -> bool:
    """Whether `view` makes [rows, the rest] of a port that is [rows, length] already."""
    shape = view.inputs[1].producer() if view.inputs[1] is not None else None
    if shape is None or shape.op_type != "Concat" or len(shape.inputs) != 2 or len(port.shape or ()) != 2:
        return False
    rows, rest = shape.inputs
    length = rows.producer() if rows is not None else None
    counted = length.inputs[0] if length is not None and length.op_type == "Shape" else None
    if length is None or counted is None or rest is None or not counted.shape or not port.shape:
        return False
    if not counted.is_graph_input() or counted.shape[0] != port.shape[0]:  # any port knows how many rows there are
        return False
    first = (length.attributes.get_int("start", 0), length.attributes.get_int("end", 2)) == (0, 1)
    return first and rest.const_value is not None and rest.const_value.numpy().tolist() == [-1]


def _is_grid(places: ir.Value) -> bool:
    """Whether `places` holds (i, j) for every i and j from 0: two counted ranges, expanded to one shape and joined."""
    join = places.producer()
    if join is None or join.op_type != "Concat" or len(join.inputs) != 2:
        return False
    return all(_is_count(value) for value in join.inputs)


def _is_count(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in {"Unsqueeze", "Expand"}:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == "Range" and _scalar(node, 0) == 0 and _scalar(node, 2) == 1


def _scalar(node: ir.Node, index: int) -> float | None:
    value = node.inputs[index]
    if value is None or value.const_value is None:
        return None
    return float(value.const_value.numpy().item())
