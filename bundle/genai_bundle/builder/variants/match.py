# SPDX-License-Identifier: Apache-2.0
"""Read the portable graph: what an attention node's key, value and mask really are.

Every question is answered with what was proved by the pattern, or None. A rewrite that guesses is a silent wrong
result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cached:
    """An operand of attention: the port `past` and `new` [batch,heads,sequence,size], joined to the port `present`."""

    past: ir.Value
    new: ir.Value
    present: ir.Value
    heads: int
    size: int


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes `value`, if it is one of these standard operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node that alone reads `value`, if it is of this type."""
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type and not value.is_graph_output() else None


def static(value: ir.Value | None, axis: int) -> int | None:
    """The length of an axis that the graph fixes."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers of a small initializer."""
    tensor = value.const_value if value is not None else None
    return tensor.numpy() if tensor is not None and tensor.size <= 64 else None


def permutes(node: ir.Node | None, perm: Sequence[int]) -> bool:
    """Whether `node` is a Transpose with this permutation."""
    return node is not None and node.op_type == "Transpose" and list(node.attributes.get_ints("perm", ())) == list(perm)


def cached(value: ir.Value | None, heads: int) -> Cached | None:
    """Match `Concat(past, new)`, its heads repeated to `heads` or used as they are."""
    reshape = producer(value, "Reshape")
    if reshape is not None:
        expand = producer(reshape.inputs[0], "Expand")
        unsqueeze = producer(expand.inputs[0], "Unsqueeze") if expand else None
        axes = constant(unsqueeze.inputs[1]) if unsqueeze else None
        # [b,kv,t,d] -> [b,kv,1,t,d] -> [b,kv,group,t,d] -> [b,heads,t,d]: query head i reads head i // group.
        if unsqueeze is None or axes is None or axes.tolist() != [2] or static(value, 1) != heads:
            return None
        value = unsqueeze.inputs[0]
    join = producer(value, "Concat")
    if join is None or len(join.inputs) != 2 or join.attributes.get_int("axis", 0) not in (-2, 2):
        return None
    past, new = join.inputs
    if past is None or new is None or not past.is_graph_input() or not join.outputs[0].is_graph_output():
        return None
    count, size = static(past, 1), static(past, 3)
    if count is None or size is None or heads % count:
        return None
    return Cached(past, new, join.outputs[0], count, size)


def is_causal_with_padding(mask: ir.Value | None, padding: ir.Value) -> bool:
    """Whether `mask` says exactly: not later than the query, and not padding. A window or a prefix makes it False."""
    scaled = producer(mask, "Mul")
    if scaled is not None:
        cast = producer(scaled.inputs[0], "Cast")
        inverted = producer(cast.inputs[0], "Not") if cast else None
        low = constant(scaled.inputs[1])
        if inverted is None or low is None or low.size != 1 or low.item() > -1e30:
            return False
        mask = inverted.inputs[0]
    kinds = [_kind(leaf, padding) for leaf in _conjuncts(mask)]
    return None not in kinds and {"causal", "padding"} <= set(kinds)


def _conjuncts(mask: ir.Value | None) -> list[ir.Value | None]:
    node = producer(mask, "And", "Expand")
    if node is None:
        return [mask]
    parts = node.inputs[:1] if node.op_type == "Expand" else node.inputs
    return [leaf for part in parts for leaf in _conjuncts(part)]


def _kind(leaf: ir.Value | None, padding: ir.Value) -> str | None:
    numbers = constant(leaf)
    if numbers is not None:
        return "true" if bool(numbers.all()) else None
    view = producer(leaf, "Unsqueeze")
    if view is not None:
        cast = producer(view.inputs[0], "Cast")
        axes = constant(view.inputs[1])
        seen = cast is not None and cast.inputs[0] is padding and axes is not None and axes.tolist() == [1, 2]
        return "padding" if seen else None
    order = producer(leaf, "LessOrEqual")
    if order is None:
        return None
    key, query = _below_unsqueeze(order.inputs[0]), _below_unsqueeze(order.inputs[1])
    # key counts 0..past+sequence-1, query counts past..past+sequence-1.
    shift = producer(query, "Add")
    counts = producer(key, "Range") is not None and shift is not None
    return "causal" if counts and shift is not None and producer(shift.inputs[0], "Range") is not None else None


def _below_unsqueeze(value: ir.Value | None) -> ir.Value | None:
    while (node := producer(value, "Unsqueeze")) is not None:
        value = node.inputs[0]
    return value
