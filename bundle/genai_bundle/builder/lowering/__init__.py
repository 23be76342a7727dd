# SPDX-License-Identifier: Apache-2.0
"""Graphs in the operators that every backend has: spec/graphs.md, Portable graphs.

One file per rewrite in `rewrites`, found by being there: no list to edit. It says which operators it takes and what it
puts in their place, in standard operators of `OPSET`; weights are read where they lie. What no file takes stays as it
is, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from genai_bundle.builder.lowering import bodies, inference, opset, rewrites
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer

OPSET, NEWEST = opset.OPSET, opset.NEWEST

Key = tuple[str, str]
"""Domain and operator."""

Rewrite = Callable[[ir.Node, Writer], Values | None]
"""From a node to what stands for its outputs; None where the node is portable as it is. Raises `UnfitError`."""


@dataclass(frozen=True)
class Lowered:
    """What became of a graph.

    model: in portable operators, where `left` is empty. changed: the operators that were rewritten. left: what could
    not be, with the reason.
    """

    model: ir.Model
    changed: Sequence[str]
    left: Sequence[str]


@cache
def known() -> Mapping[Key, Rewrite]:
    """The rewrites, by what they take."""
    found: dict[Key, Rewrite] = {}
    for module in sorted(entry.name for entry in iter_modules(rewrites.__path__)):
        rewrite = import_module(f"{rewrites.__name__}.{module}")
        found |= dict.fromkeys(rewrite.OPERATORS, rewrite.rewrite)
    return found


def portable(model: onnx.ModelProto) -> bool:
    """Whether a graph is one as it is; a quick look, from operators and their sets only."""
    return not any(_concerns(node, found) for found in [ir.from_proto(model)] for node in found.graph.all_nodes()) and (
        not model.functions and max((one.version for one in model.opset_import if not one.domain), default=0) <= NEWEST
    )


def lower(source: ir.Model) -> Lowered:
    """Rewrite a copy of the model. Weights of the copy are the source's, or other readings of the same bytes."""
    model = source.clone()
    opset.bring_in(model)
    changed = ["model-local functions"] if model.functions else []
    common.InlinePass()(model)
    opset.name_strangers(model)
    try:
        model = opset.raised(model)
    except UnfitError as reason:
        return Lowered(model, changed, [str(reason)])
    if not any(_concerns(node, model) for node in model.graph.all_nodes()):
        left = opset.settle(model)
        return Lowered(model, changed, left)
    inference.infer(model)
    left = []
    for node in list(model.graph.all_nodes()):
        try:
            if _apply(node, model):
                changed.append(node.op_type)
        except UnfitError as reason:
            left.append(f"{node.op_type} ({node.name}): {reason}")
    left += [] if left else opset.settle(model)
    _tidy(model)
    return Lowered(model, list(dict.fromkeys(changed)), left)


def _concerns(node: ir.Node, model: ir.Model) -> bool:
    return _rewrite(node, model) is not None or not opset.is_standard(node)


def _rewrite(node: ir.Node, model: ir.Model) -> Rewrite | None:
    if (found := known().get((node.domain, node.op_type))) is not None:
        return found
    return bodies.rewrite if bodies.applies(node, model) else None


def _apply(node: ir.Node, model: ir.Model) -> bool:
    """Rewrite a node. Returns whether it was."""
    rewrite = _rewrite(node, model)
    if rewrite is None:
        if not opset.is_standard(node):
            raise UnfitError("there is no form of it in standard operators")
        inference.infer_node(node, model)
        return False
    write = Writer(node, model)
    found = rewrite(node, write)
    if found is None:
        inference.infer_node(node, model)
        return False
    assert node.graph is not None
    for old, new in zip(node.outputs, (*found, *(None for _ in node.outputs)), strict=False):
        used = old.uses() or old.is_graph_output()
        if new is None:
            if used:
                raise UnfitError(f"its output {old.index()} is used")
            continue
        _take_over(old, new, write)
    node.graph.insert_before(node, write.nodes)
    node.graph.remove(node, safe=True)
    return True


def _take_over(old: ir.Value, new: ir.Value, write: Writer) -> None:
    """Let `new` stand for `old`, with its name where that is a port's."""
    if new.producer() is None or new.is_graph_output() or new.producer() not in write.nodes:
        new = write("Identity", new)  # what has a name of its own
    name, port = old.name, old.is_graph_output()
    if port or new.type is None:
        new.type = old.type or new.type
    if old.shape is not None and (port or new.shape is None):
        new.shape = old.shape
    old.name = None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name = name


def _tidy(model: ir.Model) -> None:
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(model)
    common.DeduplicateInitializersPass(size_limit=64)(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.NameFixPass()(model)
    model.graph.sort()
    for domain in {*model.opset_imports} - {node.domain for node in model.graph.all_nodes()} - {""}:
        del model.opset_imports[domain]
