# SPDX-License-Identifier: Apache-2.0
"""Types and shapes inside a graph: inference goes as far as standard operators, and on from where one was rewritten."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

_SMALL = 64
"""Elements of a constant that inference may want to see: a shape, axes."""


def infer(model: ir.Model) -> None:
    """For the whole model, by ONNX's inference; operators that it does not know end it."""
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def infer_node(node: ir.Node, model: ir.Model) -> None:
    """For a node's outputs of which the type is not known."""
    if all(value.type is not None and value.shape is not None for value in node.outputs):
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports[""], "")
        proto = ir.to_proto(node)
        known = onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            {str(value.name): _type(value) for value in node.inputs if value is not None and value.type is not None},
            {
                str(value.name): data
                for value in node.inputs
                if value is not None and (data := _data(value)) is not None
            },
            opset_imports=[onnx.helper.make_opsetid("", model.opset_imports[""])],
            ir_version=model.ir_version,
        )
    except Exception:  # what cannot be inferred stays unknown
        return
    for value in node.outputs:
        if value.name in known and known[value.name].HasField("tensor_type"):
            found = known[value.name]
            value.type = value.type or ir.serde.deserialize_type_proto_for_type(found)
            if value.shape is None:
                value.shape = ir.serde.deserialize_type_proto_for_shape(found)


def _type(value: ir.Value) -> onnx.TypeProto:
    return ir.serde.serialize_value(value).type


def _data(value: ir.Value) -> onnx.TensorProto | None:
    tensor = value.const_value
    if tensor is None and (node := value.producer()) is not None and node.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > _SMALL:
        return None
    return ir.serde.serialize_tensor(tensor)
