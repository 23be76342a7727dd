# SPDX-License-Identifier: Apache-2.0
"""Operators that ONNX itself says in older ones: the function body of their schema is put in their place.

Such are LinearAttention, CausalConvWithState, SwiGLU, FlexAttention and whatever else is newer than portable graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from genai_bundle.builder.lowering.opset import NEWEST
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer

PREVIEW = "ai.onnx.preview"

_DOMAIN = "lowered"


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
    """The body, as a function of a model of this node alone, inlined."""
    inputs = {f"in.{index}": value for index, value in enumerate(node.inputs) if value is not None}
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(f"in.{index}" if value is not None else "" for index, value in enumerate(node.inputs))
    proto.output.extend(f"out.{value.index()}" if value.name else "" for value in node.outputs)
    model = _model(proto, _function(node, proto, write.model), inputs)
    found = ir.from_proto(model)
    common.InlinePass()(found)
    made, outputs = list(found.graph), {str(value.name): value for value in found.graph.outputs}
    ports = list(found.graph.inputs)
    found.graph.outputs.clear()
    found.graph.remove(made)
    for port in ports:
        ir.convenience.replace_all_uses_with(port, inputs[str(port.name)])
    for one in made:
        write.add(one)
    return [outputs.get(f"out.{value.index()}") for value in node.outputs]


def _function(node: ir.Node, proto: onnx.NodeProto, model: ir.Model) -> onnx.FunctionProto:
    """The schema's body, which may hang on the node's attributes and on the types of what it is given."""
    schema: Any = _schema(node, model)
    if not schema.has_context_dependent_function:
        found = schema.function_body
    else:
        types = [_type(value) if value is not None else onnx.TypeProto() for value in node.inputs]
        raw = schema.get_context_dependent_function(
            proto.SerializeToString(), [one.SerializeToString() for one in types]
        )
        if not raw:
            raise UnfitError("ONNX gives no body for it in this form")
        found = onnx.FunctionProto.FromString(raw)
    function: onnx.FunctionProto = onnx.FunctionProto.FromString(found.SerializeToString())
    function.domain, function.name = _DOMAIN, node.op_type
    return function


def _model(proto: onnx.NodeProto, function: onnx.FunctionProto, inputs: Mapping[str, ir.Value]) -> onnx.ModelProto:
    call = onnx.NodeProto.FromString(proto.SerializeToString())
    call.domain = _DOMAIN
    for attribute in [one for one in call.attribute if one.HasField("g") or one.name not in function.attribute]:
        call.attribute.remove(attribute)  # a body has such graphs in it
        if attribute.name in function.attribute:
            function.attribute.remove(attribute.name)
    given = [onnx.ValueInfoProto(name=name, type=_type(value)) for name, value in inputs.items()]
    results = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([call], "one", given, results)
    sets = [*(one for one in function.opset_import if one.domain != _DOMAIN), onnx.helper.make_opsetid(_DOMAIN, 1)]
    return onnx.helper.make_model(graph, functions=[function], opset_imports=sets)


def _type(value: ir.Value) -> onnx.TypeProto:
    if value.type is None:
        raise UnfitError(f"the type of {value.name} is unknown")
    return ir.serde.serialize_value(value).type


def _schema(node: ir.Node, model: ir.Model) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, model.opset_imports.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return None
