# SPDX-License-Identifier: Apache-2.0
"""Ports for adapters in a portable graph: beside each product with an adapted weight a thin one of two matrices.

    y = x W    ->    y = x W + (x a) b      with the inputs a [K, rank] and b [rank, N]

The product itself stays as it is, so that variants and stored forms of weights find it as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from genai_bundle.builder import tidy
from genai_bundle.builder.adapters.folder import Adapter, LowRank, Read, misfit, weight_of
from genai_bundle.builder.graph_files import adapter_member
from genai_bundle.builder.variants.match import permutes
from genai_bundle.errors import SourceError


@dataclass(frozen=True)
class Added:
    """What adapters add to a bundle: models {adapter: {member path: model}}, and the manifest's `adapters`."""

    models: Mapping[str, Mapping[str, ir.Model]]
    entries: Mapping[str, Any]


def add_branches(graphs: Mapping[str, ir.Model], adapters: Sequence[Adapter]) -> Added:
    """Give the graphs, in place, ports for every module that one of the adapters changes.

    Raises:
        SourceError: a module is not in the base, has another shape there, or its weight does more than a product.
    """
    models: dict[str, dict[str, ir.Model]] = {adapter.name: {} for adapter in adapters}
    entries: dict[str, Any] = {adapter.name: {"graphs": {}} for adapter in adapters}
    held = {name: _Weights(model.graph) for name, model in graphs.items()}
    for adapter in adapters:
        for module, pair in adapter.pairs.items():
            if not any(weights.find(module) for weights in held.values()):
                raise SourceError(
                    f"changes the module '{module}', and no product of the base has a weight of its name",
                    where=pair.where, hint="The adapter is another model's, or changes what is no linear module",
                )  # fmt: skip
    for name, weights in held.items():
        changed = {
            module: pair for adapter in adapters for module, pair in adapter.pairs.items() if weights.find(module)
        }
        for module in sorted(changed):
            for adapter in adapters:
                if module in adapter.pairs:
                    weights.check(module, adapter.pairs[module])
            weights.branch(module)
        graphs[name].graph.sort()
        for adapter in adapters:
            pairs = [(module, pair) for module, pair in sorted(adapter.pairs.items()) if module in changed]
            if pairs:
                member = adapter_member(adapter.name, name)
                models[adapter.name][member] = _model(
                    tensor for module, pair in pairs for tensor in _pair(module, pair)
                )
                entries[adapter.name]["graphs"][name] = member
    return Added(models, entries)


class _Weights:
    """The weights of a graph by the modules that own them, and the products with them."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        # Before any branch is added: what is given to one is no weight.
        self._names = [name for name in graph.initializers if name.endswith(".weight")]

    def find(self, module: str) -> ir.Value | None:
        """The weight of a module, if the graph has it."""
        name = weight_of(module, self._names)
        return self.graph.initializers[name] if name is not None else None

    def check(self, module: str, pair: LowRank) -> None:
        """Compare an adapter's matrices with the module's."""
        for _, shape in self._products(module, pair.where):
            if shape != (pair.inner, pair.outer):
                raise misfit(module, pair, shape)

    def branch(self, module: str) -> None:
        """Add the module's two ports and their products."""
        products = list(self._products(module, module))
        (inner, outer), rank = products[0][1], f"rank.{module}"
        a, b = _port(f"lora.{module}.a", [inner, rank]), _port(f"lora.{module}.b", [rank, outer])
        self.graph.inputs.extend([a, b])
        for number, (product, _) in enumerate(products):
            self._add(product, a, b, f"{module}/adapter{f'.{number}' if number else ''}", rank)

    def _products(self, module: str, where: str) -> Iterator[tuple[ir.Node, tuple[int, int]]]:
        """The nodes that multiply by the module's weight, and the weight's (K, N)."""
        weight = self.find(module)
        assert weight is not None
        assert weight.const_value is not None
        first, second = weight.const_value.shape.numpy()
        for use in list(weight.uses()):
            if permutes(use.node, (1, 0)):
                for inner in list(use.node.outputs[0].uses()):
                    yield _product(inner.node, inner.idx, module, where), (second, first)
            else:
                node = _product(use.node, use.idx, module, where)
                turned = node.op_type == "Gemm" and node.attributes.get_int("transB", False)
                yield node, (second, first) if turned else (first, second)

    def _add(self, product: ir.Node, a: ir.Value, b: ir.Value, name: str, rank: str) -> None:
        x, old = product.inputs[0], product.outputs[0]
        down = ir.node("MatMul", [x, a])
        up = ir.node("MatMul", [down.outputs[0], b])
        total = ir.node("Add", [old, up.outputs[0]])
        for node, suffix in ((down, "down"), (up, "up"), (total, "sum")):
            node.name = node.outputs[0].name = f"{name}.{suffix}"
            node.outputs[0].type, node.outputs[0].shape = old.type, old.shape
        if old.shape is not None:
            down.outputs[0].shape = ir.Shape([*list(old.shape)[:-1], rank])
        self.graph.insert_after(product, [down, up, total])
        is_port = old.is_graph_output()
        ir.convenience.replace_all_uses_with(old, total.outputs[0], replace_graph_outputs=True)
        total.replace_input_with(0, old)
        if is_port:  # which keeps its name
            port, old.name = old.name, f"{name}.product"
            total.outputs[0].name = port


def _product(node: ir.Node, index: int, module: str, where: str) -> ir.Node:
    given = node.attributes
    plain = index == 1 and node.domain == "" and node.op_type in ("MatMul", "Gemm")
    if not plain or given.get_float("alpha", 1.0) != 1.0 or given.get_int("transA", False):
        raise SourceError(
            f"the weight of '{module}' is used by {node.op_type}, and not in a plain product alone", where=where,
            hint="A module that shares its weight, such as a tied output head, cannot have an adapter",
        )  # fmt: skip
    return node


def _port(name: str, dims: list[Any]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))


def _pair(module: str, pair: LowRank) -> Iterator[ir.TensorProtocol]:
    """The two tensors of a module under the names of their ports."""
    halves = (("a", pair.a, (pair.inner, pair.rank)), ("b", pair.b, (pair.rank, pair.outer)))
    for half, read, shape in halves:
        yield _lazy(f"lora.{module}.{half}", read, shape)


def _lazy(name: str, read: Read, shape: tuple[int, int]) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.Tensor(read(), name=name), dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name
    )


def _model(tensors: Iterable[ir.TensorProtocol]) -> ir.Model:
    """A model that computes nothing: its outputs are these tensors."""
    values = [
        ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
        for tensor in tensors
    ]
    graph = ir.Graph([], values, nodes=[], initializers=values, name="adapter", opset_imports={"": 23})
    return ir.Model(graph, ir_version=tidy.IR_VERSION, producer_name="genai-bundle")
