# SPDX-License-Identifier: Apache-2.0
"""Operators that ONNX itself says in older ones: the function body of their schema is put in their place.

Such are LinearAttention, CausalConvWithState, SwiGLU, FlexAttention and whatever else is newer than portable graphs.
"""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx_ir as ir

from genai_bundle.builder.lowering.opset import NEWEST
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer

PREVIEW = "ai.onnx.preview"


def applies(node: ir.Node, model: ir.Model) -> bool:
    """Whether the operator is new and has a body."""
    schema = _schema(node, model)
    if not getattr(schema, "has_function", False) and not getattr(schema, "has_context_dependent_function", False):
        return False
    if node.domain == PREVIEW:
        return True
    try:
        onnx.defs.get_schema(node.op_type, NEWEST, node.domain)
    except onnx.defs.SchemaError:
        return True
    return False


def rewrite(node: ir.Node, write: Writer) -> Values:
    """The body, inlined by ONNX from a model of this node alone."""
    version = write.model.opset_imports[""]
    sets = [onnx.helper.make_opsetid("", max(version, NEWEST))]
    sets += [onnx.helper.make_opsetid(PREVIEW, 1)] if node.domain == PREVIEW else []
    inputs = {f"in.{index}": value for index, value in enumerate(node.inputs) if value is not None}
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(f"in.{index}" if value is not None else "" for index, value in enumerate(node.inputs))
    proto.output.extend(f"out.{value.index()}" if value.name else "" for value in node.outputs)
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [onnx.ValueInfoProto(name=name, type=_type(value)) for name, value in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in proto.output if name],
    )
    model = onnx.helper.make_model(graph, opset_imports=sets, ir_version=write.model.ir_version)
    names = [(node.domain, node.op_type)]
    inlined = ir.from_proto(onnx.inliner.inline_selected_functions(model, names, inline_schema_functions=True))
    made = list(inlined.graph)
    if any((one.domain, one.op_type) == names[0] for one in made):
        raise UnfitError("ONNX gives no body for it in this form")
    results: list[ir.Value | None] = []
    outputs = {str(value.name): value for value in inlined.graph.outputs}
    for value in node.outputs:
        results.append(outputs.get(f"out.{value.index()}"))
    ports = list(inlined.graph.inputs)
    inlined.graph.outputs.clear()
    inlined.graph.remove(made)
    for port in ports:
        ir.convenience.replace_all_uses_with(port, inputs[str(port.name)])
    for one in made:
        write.add(one)
    return results


def _type(value: ir.Value) -> onnx.TypeProto:
    if value.type is None:
        raise UnfitError(f"the type of {value.name} is unknown")
    return ir.serde.serialize_value(value).type


def _schema(node: ir.Node, model: ir.Model) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, model.opset_imports.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return None
