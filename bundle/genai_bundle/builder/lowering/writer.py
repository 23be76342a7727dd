# SPDX-License-Identifier: Apache-2.0
"""What rewrites write with: one call is one standard operator, before the node that is rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_bundle.builder.lowering import inference

Values = Sequence[ir.Value | None]
Operand = ir.Value | NDArray[Any] | Sequence[int] | None
"""A list stands for an int64 constant of one axis."""


class UnfitError(Exception):
    """Says why a node has no portable form."""


class Writer:
    """Standard operators for one node.

    `w("Add", x, y)` gives the sum. The nodes are collected, their types inferred; `__init__` of the package inserts
    them where all of them could be written.
    """

    def __init__(self, node: ir.Node, model: ir.Model) -> None:
        self.node, self.model = node, model
        self.nodes: list[ir.Node] = []
        self.prefix = node.name or node.op_type

    def __call__(self, op_type: str, *inputs: Operand, **attributes: Any) -> ir.Value:
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(self, op_type: str, count: int, *inputs: Operand, **attributes: Any) -> Sequence[ir.Value]:
        """An operator with `count` outputs."""
        values = [self._value(one) for one in inputs]
        made = ir.node(op_type, values, attributes, num_outputs=count)
        self.add(made)
        return made.outputs

    def add(self, node: ir.Node) -> None:
        """Take a node that was made elsewhere."""
        number = len(self.nodes)
        node.name = f"{self.prefix}.{number}/{node.op_type}"
        for value in node.outputs:
            if value.name != "":
                value.name = f"{node.name}:{value.index()}" if value.index() else node.name
        self.nodes.append(node)
        inference.infer_node(node, self.model)

    def number(self, value: float, like: ir.Value) -> ir.Value:
        """A scalar in the element type of `like`."""
        return self._constant(np.array(value, dtype_of(like).numpy()))

    def weight(self, tensor: ir.TensorProtocol) -> ir.Value:
        """An initializer of the main graph."""
        graph = self.model.graph
        name, number = str(tensor.name), 0
        while name in graph.initializers:
            if graph.initializers[name].const_value is tensor:
                return graph.initializers[name]
            number += 1
            name = f"{tensor.name}.{number}"
        tensor.name = name
        shape = ir.Shape(tensor.shape)  # type: ignore[arg-type]
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        return value

    def _value(self, given: Operand) -> ir.Value | None:
        if given is None or isinstance(given, ir.Value):
            return given
        if isinstance(given, np.ndarray):
            return self._constant(given)
        return self._constant(np.array(list(given), np.int64))

    def _constant(self, array: NDArray[Any]) -> ir.Value:
        return self("Constant", value=ir.tensor(array))


def dtype_of(value: ir.Value | None) -> ir.DataType:
    """The element type. Raises UnfitError where the graph does not say it."""
    if value is None or value.dtype is None:
        raise UnfitError(f"the type of {value.name if value is not None else 'an input'} is unknown")
    return value.dtype


def rank_of(value: ir.Value | None) -> int:
    """The number of axes. Raises UnfitError where the graph does not say it."""
    if value is None or value.shape is None:
        raise UnfitError(f"the rank of {value.name if value is not None else 'an input'} is unknown")
    return len(value.shape)


def size_of(value: ir.Value | None, axis: int) -> int | None:
    """The length of an axis that the graph fixes."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An optional input."""
    return node.inputs[index] if index < len(node.inputs) else None


def must(node: ir.Node, index: int) -> ir.Value:
    """An input that has to be there. Raises UnfitError."""
    value = given(node, index)
    if value is None:
        raise UnfitError(f"its input {index} is missing")
    return value


def data_of(value: ir.Value, what: str) -> ir.TensorProtocol:
    """The numbers of a constant. Raises UnfitError where they are known only at run time."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise UnfitError(f"{what} are not constants of the graph")
    return tensor


def allow(node: ir.Node, **defaults: Any) -> None:
    """Refuse attributes with another value than the one that changes nothing. Raises UnfitError."""
    for name, default in defaults.items():
        attribute = node.attributes.get(name)
        found = attribute.value if attribute is not None else default
        if found != default:
            raise UnfitError(f"{name} = {found!r} is not understood")
