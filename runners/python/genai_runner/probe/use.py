# SPDX-License-Identifier: Apache-2.0
"""One node of a graph, with what is known of its inputs: what a case is matched against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx
import onnx.inliner
from onnx import numpy_helper

from genai_bundle.errors import BackendError

from ..backends.base import Array

LARGEST = 4096
"""Elements of a constant whose values are looked at: lists of sizes and indices, never weights."""


class Scope:
    """What the nodes of a model may refer to by name. Shapes are inferred when a case first asks for one."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.functions = {(function.domain, function.name) for function in model.functions}
        self.constants: dict[str, onnx.TensorProto] = {}
        self.consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for graph in self._graphs():
            self.constants |= {tensor.name: tensor for tensor in graph.initializer}
            self._read(graph.node)

    def _graphs(self) -> Iterator[onnx.GraphProto]:
        yield self._model.graph
        for node in nodes(self._model.graph):
            yield from subgraphs(node)

    def _read(self, found: Any) -> None:
        for node in found:
            if node.op_type == "Constant" and node.attribute:
                if node.attribute[0].type == onnx.AttributeProto.TENSOR:
                    self.constants[node.output[0]] = node.attribute[0].t
                else:
                    self.constants[node.output[0]] = _tensor(node.attribute[0])
            for index, name in enumerate(node.input):
                self.consumers.setdefault(name, []).append((node, index))

    @cached_property
    def types(self) -> Mapping[str, onnx.TypeProto.Tensor]:
        """Element types and shapes by name, as far as they can be inferred."""
        try:
            graph = onnx.shape_inference.infer_shapes(self._model).graph
        except Exception:  # of a model that it cannot read, or that is too large, nothing is inferred
            graph = self._model.graph
        known = [*graph.input, *graph.value_info, *graph.output]
        return {value.name: value.type.tensor_type for value in known if value.type.HasField("tensor_type")}


def _tensor(attribute: onnx.AttributeProto) -> onnx.TensorProto:
    """The value of a Constant that is written as a number or a list of them."""
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
        numbers = [value] if attribute.type == onnx.AttributeProto.INT else list(value)
        dims = [] if attribute.type == onnx.AttributeProto.INT else [len(numbers)]
        return onnx.helper.make_tensor("", onnx.TensorProto.INT64, dims, numbers)
    return onnx.TensorProto(data_type=onnx.TensorProto.UNDEFINED, dims=[1])


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph in its order, those of branches and bodies after the node that has them."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes(inner)


@dataclass(frozen=True)
class Use:
    """`node` within its model. What is not known is None; cases take the unknown for what they are about."""

    node: onnx.NodeProto
    scope: Scope = field(repr=False)

    @property
    def operator(self) -> str:
        domain = "" if self.node.domain == "ai.onnx" else self.node.domain
        return f"{domain}.{self.node.op_type}" if domain else self.node.op_type

    def attribute(self, name: str, default: Any = None) -> Any:
        for one in self.node.attribute:
            if one.name == name:
                value = onnx.helper.get_attribute_value(one)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return len(self.node.input) > index and bool(self.node.input[index])

    def gives(self, index: int) -> bool:
        """Whether output `index` is asked for."""
        return len(self.node.output) > index and bool(self.node.output[index])

    def constant(self, index: int) -> Array | None:
        """The value of an input that is a small constant."""
        tensor = self.scope.constants.get(self.node.input[index]) if self.has(index) else None
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL or _size(tensor) > LARGEST:
            return None
        return numpy_helper.to_array(tensor) if tensor.data_type != onnx.TensorProto.UNDEFINED else None

    def is_constant(self, index: int) -> bool:
        return self.has(index) and self.node.input[index] in self.scope.constants

    def dtype(self, index: int) -> int | None:
        """Element type of an input, a number of TensorProto.DataType."""
        name = self.node.input[index]
        if name in self.scope.constants:
            return int(self.scope.constants[name].data_type)
        found = self.scope.types.get(name)
        return int(found.elem_type) if found is not None and found.elem_type else None

    def shape(self, index: int) -> list[int | None] | None:
        """Dims of an input, None for each that is not fixed; None where the rank is not known either."""
        name = self.node.input[index]
        if name in self.scope.constants:
            return list(self.scope.constants[name].dims)
        found = self.scope.types.get(name)
        if found is None or not found.HasField("shape"):
            return None
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in found.shape.dim]

    def rank(self, index: int) -> int | None:
        shape = self.shape(index)
        return None if shape is None else len(shape)


def uses(model: onnx.ModelProto) -> Iterator[Use]:
    """The nodes of a model as they are, and those that calls of its functions stand for.

    Raises BackendError where the functions cannot be resolved: nobody knows what such a model holds.
    """
    models = [model]
    if model.functions:
        try:
            models.append(onnx.inliner.inline_local_functions(model))
        except Exception as error:  # of whatever kind the C++ code raises
            reason = " ".join(str(error).split())
            raise BackendError(
                f"the functions of the model cannot be put in the place of their calls: {reason}"
            ) from error
    for one in models:
        scope = Scope(one)
        yield from (Use(node, scope) for node in nodes(one.graph))


def _size(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count
