# SPDX-License-Identifier: Apache-2.0
"""Change a graph so that it reads its weights in the form in which they are stored. In place.

Arithmetic stays float32: a float weight is cast before its use, a quantised one dequantised, or given to an operator
of ONNX Runtime that does both at once, where the graph may use those.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from genai_bundle.builder import tidy
from genai_bundle.builder.storage.packed import Packed
from genai_bundle.builder.storage.uses import Way, row_indices, way
from genai_bundle.builder.variants.match import permutes
from genai_bundle.errors import SourceError

CONTRIB = "com.microsoft"

_BLOCKED = 21
"""The first operator set whose DequantizeLinear has blocks."""


def read_cast(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> None:
    """Store the weight `name` as `tensor`, of another float type, and cast it to float32 for all its uses."""
    old = graph.initializers.pop(name)
    value = _initializer(graph, name, tensor)
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
    _result(cast, f"{name}/Cast", old.shape)
    _first(graph, cast)
    ir.convenience.replace_all_uses_with(old, cast.outputs[0])


def read_blocks(model: ir.Model, weight: Packed, *, contrib: bool) -> None:
    """Store a weight in blocks. `contrib`: the graph may use ONNX Runtime's own operators."""
    if model.opset_imports.get("", 0) < _BLOCKED:
        raise SourceError(f"quantised weights need operator set {_BLOCKED}", where=str(model.graph.name))
    _Blocks(model, weight, contrib).run()


class _Blocks:
    """Rewrites the uses of one weight."""

    def __init__(self, model: ir.Model, weight: Packed, contrib: bool) -> None:
        self.model, self.graph, self.weight, self.contrib = model, model.graph, weight, contrib
        self.old = self.graph.initializers.pop(weight.name)
        self._whole: ir.Value | None = None

    def run(self) -> None:
        for use in list(self.old.uses()):
            node = use.node
            if self.contrib and permutes(node, (1, 0)):
                self._products(node)
                if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                    node.graph.remove(node, safe=True)  # type: ignore[union-attr]
                    continue
            if not self._fused(node, use.idx) and not self._rows(node, use.idx):
                self._dequantised(node, use.idx)

    def _products(self, turned: ir.Node) -> None:
        """The products that read the matrix through a transposition."""
        for use in list(turned.outputs[0].uses()):
            if use.node.op_type == "MatMul" and use.node.domain == "" and use.idx == 1:
                self._matmul(use.node)

    def _fused(self, node: ir.Node, index: int) -> bool:
        """A product with the weight as one operator."""
        if not self.contrib or len(self.weight.shape) != 2 or index != 1 or node.op_type == "Transpose":
            return False
        if way(node, index) is not (Way.TURNED if self.weight.turned else Way.MATRIX):
            return False
        given = node.attributes
        plain = given.get_float("alpha", 1.0) == given.get_float("beta", 1.0) == 1.0 and given.get_int("transA", 0) == 0
        if not plain or node.op_type not in ("MatMul", "FusedMatMul", "Gemm"):
            return False
        self._matmul(node)
        return True

    def _matmul(self, node: ir.Node) -> None:
        """`MatMulNBits` in the place of a product, the bias of a Gemm with it."""
        weight, form = self.weight, self.weight.form
        zeros = None if form.symmetric else self._input("zeros.packed", weight.packed_zeros)
        inputs = [node.inputs[0], self._input("blocks", weight.block_values), self._scales(), zeros]
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            inputs += [None, node.inputs[2]]
        attributes = {
            "K": weight.length, "N": weight.outer[0], "bits": form.bits, "block_size": form.block, "accuracy_level": 0
        }  # fmt: skip
        while inputs[-1] is None:
            inputs.pop()
        self._replace(node, ir.node("MatMulNBits", inputs, attributes, domain=CONTRIB, name=node.name))

    def _rows(self, node: ir.Node, index: int) -> bool:
        """Rows are gathered in their stored form and dequantised then: a table is never dequantised as a whole."""
        if way(node, index) is not Way.ROWS or self.weight.turned:
            return False
        indices = row_indices(node)
        if indices is None or indices.shape is None:
            return False
        weight, form = self.weight, self.weight.form
        if self.contrib:
            zeros = [] if form.symmetric else [self._input("zeros.packed", weight.packed_zeros)]
            inputs = [self._input("packed", weight.packed_values), indices, self._scales(), *zeros]
            attributes = {
                "bits": form.bits, "block_size": form.block, "gather_axis": 0, "quantize_axis": len(weight.shape) - 1
            }  # fmt: skip
            self._replace(node, ir.node("GatherBlockQuantized", inputs, attributes, domain=CONTRIB, name=node.name))
        else:
            rank = len(indices.shape) + len(weight.shape) - 1
            self._replace(node, _Gathered(self, node, indices, rank).result())
        return True

    def _dequantised(self, node: ir.Node, index: int) -> None:
        """The weight as a whole in float32, for whatever the node does with it."""
        if self._whole is None:
            weight = self.weight
            inputs = [
                self._input("quantized", weight.typed_values),
                self._scales(),
                self._input("zeros", weight.typed_zeros),
            ]
            attributes = {"axis": len(weight.outer), "block_size": weight.form.block}
            made = ir.node("DequantizeLinear", inputs, attributes, name=f"{weight.name}/DequantizeLinear")
            _first(self.graph, made)
            self._whole = _result(made, made.name or "", ir.Shape([*weight.outer, weight.length]))
        if self.weight.turned and node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
            node.attributes["transB"] = ir.AttrInt64("transB", 1)
            node.replace_input_with(index, self._whole)
            return
        node.replace_input_with(index, self._turned(self._whole) if self.weight.turned else self._whole)

    def _turned(self, whole: ir.Value) -> ir.Value:
        users = [use.node for use in whole.uses() if use.node.op_type == "Transpose"]
        if users:
            return users[0].outputs[0]
        node = ir.node("Transpose", [whole], {"perm": [1, 0]}, name=f"{self.weight.name}/Transpose")
        self.graph.insert_after(whole.producer(), node)  # type: ignore[arg-type]
        return _result(node, node.name or "", ir.Shape(self.weight.shape))

    def _scales(self) -> ir.Value:
        return self._input("scales", self.weight.scale_values)

    def _input(self, suffix: str, read: Callable[[], ir.TensorProtocol]) -> ir.Value:
        name = f"{self.weight.name}.{suffix}"
        known = self.graph.initializers.get(name)
        return known if known is not None else _initializer(self.graph, name, read())

    def _replace(self, old: ir.Node, new: ir.Node) -> None:
        graph = old.graph
        assert graph is not None
        before, after = old.outputs[0], new.outputs[0]
        graph.insert_before(old, new)
        name, after.shape, after.type = before.name, before.shape, before.type
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
        graph.remove(old, safe=True)
        after.name = name


class _Gathered:
    """Standard operators that dequantise gathered rows: the bytes, two elements in each for four bits, then numbers."""

    def __init__(self, blocks: _Blocks, node: ir.Node, indices: ir.Value, rank: int) -> None:
        self.blocks, self.node, self.indices, self.rank = blocks, node, indices, rank
        self.graph = blocks.graph

    def result(self) -> ir.Node:
        weight, form, blocks = self.blocks.weight, self.blocks.weight.form, self.blocks
        values = self._elements(blocks._input("packed", weight.packed_values), "values", [weight.count, form.block])
        numbers = self._add("Cast", [values], "float", to=ir.DataType.FLOAT)
        if form.symmetric:
            zeros = self._scalar(np.array(form.middle, np.float32), f"zero.{form.middle}")
        else:
            packed = blocks._input("zeros.packed", weight.packed_zeros)
            zeros = self._add("Cast", [self._counted(packed)], "zeros.float", to=ir.DataType.FLOAT)
            zeros = self._add("Unsqueeze", [zeros, tidy.constant(self.graph, [-1], "axis.last")], "zeros.column")
        scales = self._add("Gather", [blocks._scales(), self.indices], "scales")
        scales = self._add("Unsqueeze", [scales, tidy.constant(self.graph, [-1], "axis.last")], "scales.column")
        centred = self._add("Sub", [numbers, zeros], "centred")
        scaled = self._add("Mul", [centred, scales], "scaled")
        return ir.node("Reshape", [scaled, self._shape([weight.length])], name=f"{self.node.name}.rows")

    def _counted(self, packed: ir.Value) -> ir.Value:
        """Zeros [..., K / block], without what fills the last byte of a row."""
        count, bits = self.blocks.weight.count, self.blocks.weight.form.bits
        values = self._elements(packed, "zeros", [count + count % 2 if bits == 4 else count])
        if bits == 8 or count % 2 == 0:
            return values
        number = tidy.constant
        begin, axis = number(self.graph, [0], "slice.begin"), number(self.graph, [-1], "axis.last")
        return self._add("Slice", [values, begin, number(self.graph, [count], f"slice.{count}"), axis], "zeros.cut")

    def _elements(self, packed: ir.Value, suffix: str, last: list[int]) -> ir.Value:
        """Gathered rows, one element in each place; the last axis split into `last`."""
        rows = self._add("Gather", [packed, self.indices], f"{suffix}.packed")
        if self.blocks.weight.form.bits == 4:
            axis = tidy.constant(self.graph, [-1], "axis.last")
            # OpenVINO 2026.4 shifts bytes by a division that rounds; 32 bits it shifts rightly.
            rows = self._add("Cast", [rows], f"{suffix}.wide", to=ir.DataType.UINT32)
            low = self._add("BitwiseAnd", [rows, self._scalar(np.array(15, np.uint32), "nibble")], f"{suffix}.low")
            high = self._add(
                "BitShift", [rows, self._scalar(np.array(4, np.uint32), "shift")], f"{suffix}.high", direction="RIGHT"
            )
            halves = [self._add("Unsqueeze", [half, axis], f"{half.name}.column") for half in (low, high)]
            rows = self._add("Concat", halves, f"{suffix}.pairs", axis=-1)
        return self._add("Reshape", [rows, self._shape(last)], suffix)

    def _shape(self, last: list[int]) -> ir.Value:
        dims = [0] * (self.rank - 1) + last
        return tidy.constant(self.graph, dims, "shape." + ".".join(map(str, dims)))

    def _scalar(self, number: np.ndarray[tuple[()], np.dtype[np.generic]], name: str) -> ir.Value:
        known = self.graph.initializers.get(name)
        return known if known is not None else _initializer(self.graph, name, ir.Tensor(number, name=name))

    def _add(self, op: str, inputs: list[ir.Value], suffix: str, **attributes: object) -> ir.Value:
        name = suffix if suffix.startswith(f"{self.node.name}.") else f"{self.node.name}.{suffix}"
        node = ir.node(op, inputs, attributes, name=name)  # type: ignore[arg-type]
        node.outputs[0].name = name
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, node)
        return node.outputs[0]


def _initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _result(node: ir.Node, name: str, shape: ir.Shape | None) -> ir.Value:
    value = node.outputs[0]
    value.name, value.shape, value.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
    return value


def _first(graph: ir.Graph, node: ir.Node) -> None:
    """Before everything else: the node reads initializers only, and may be used in any branch or body."""
    graph.insert_before(graph[0], node)
