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


@dataclass(frozen=True)
class Mask:
    """Not later than the query, not padding, and not `window` tokens or more before the query."""

    window: int | None


def read_mask(mask: ir.Value | None, padding: ir.Value) -> Mask | None:
    """What `mask` says, where it says exactly that; None for anything more, less or else."""
    leaves = _conjuncts(_allowed(mask))
    counts = next((found for found in map(_causal, leaves) if found is not None), None)
    if counts is None:
        return None
    seen, windows = set(), set()
    for leaf in leaves:
        kind = _kind(leaf, padding, counts)
        if kind is None:
            return None
        if isinstance(kind, int):
            windows.add(kind)
        else:
            seen.add(kind)
    return Mask(min(windows, default=None)) if {"causal", "padding"} <= seen else None


def _allowed(mask: ir.Value | None) -> ir.Value | None:
    """The condition under which nothing is added to a score, of a mask that is added; a boolean mask as it is."""
    chosen = producer(mask, "Where")
    if chosen is not None:
        zero, low = constant(chosen.inputs[1]), constant(chosen.inputs[2])
        return chosen.inputs[0] if _is(zero, 0.0) and _is_low(low) else None
    scaled = producer(mask, "Mul")
    if scaled is not None:
        cast = producer(scaled.inputs[0], "Cast")
        inverted = producer(cast.inputs[0], "Not") if cast else None
        return inverted.inputs[0] if inverted is not None and _is_low(constant(scaled.inputs[1])) else None
    return mask


def _is(numbers: NDArray[Any] | None, expected: float) -> bool:
    return numbers is not None and numbers.size == 1 and numbers.item() == expected


def _is_low(numbers: NDArray[Any] | None) -> bool:
    return numbers is not None and numbers.size == 1 and numbers.item() <= -1e30


def _conjuncts(mask: ir.Value | None) -> list[ir.Value | None]:
    node = producer(mask, "And", "Expand")
    if node is None:
        return [mask]
    parts = node.inputs[:1] if node.op_type == "Expand" else node.inputs
    return [leaf for part in parts for leaf in _conjuncts(part)]


def _kind(leaf: ir.Value | None, padding: ir.Value, counts: tuple[ir.Value, ir.Value]) -> str | int | None:
    """What one condition says: "true", "padding", "causal", the length of a window, or None.

    `counts` are those of `_causal`.
    """
    numbers = constant(leaf)
    if numbers is not None:
        return "true" if bool(numbers.all()) else None
    view = producer(leaf, "Unsqueeze")
    if view is not None:
        cast = producer(view.inputs[0], "Cast")
        axes = constant(view.inputs[1])
        seen = cast is not None and cast.inputs[0] is padding and axes is not None and axes.tolist() == [1, 2]
        return "padding" if seen else None
    if _causal(leaf) == counts:
        return "causal"
    later = producer(leaf, "Greater")
    begin = producer(later.inputs[1], "Sub") if later is not None else None
    if (
        later is None
        or begin is None
        or (_below_unsqueeze(later.inputs[0]), _below_unsqueeze(begin.inputs[0])) != counts
    ):
        return None
    length = constant(begin.inputs[1])
    return int(length.item()) if length is not None and length.size == 1 and length.item() > 0 else None


def _causal(leaf: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """Match `key <= query`: keys count 0..past+sequence-1 along the last axis, queries past..past+sequence-1 along the
    one before. Returns the two counts."""
    order = producer(leaf, "LessOrEqual")
    if order is None:
        return None
    key, query = _below_unsqueeze(order.inputs[0]), _below_unsqueeze(order.inputs[1])
    shift = producer(query, "Add")
    if key is None or query is None or shift is None or not _is_count(key) or static(order.inputs[1], 3) != 1:
        return None
    counted = [value for value in shift.inputs if value is not None and _is_count(value)]
    held = [value for value in shift.inputs if value is not None and _is_past_length(value)]
    return (key, query) if counted and held else None


def _is_count(value: ir.Value) -> bool:
    node = producer(value, "Range")
    return node is not None and _is(constant(node.inputs[0]), 0) and _is(constant(node.inputs[2]), 1)


def _is_past_length(value: ir.Value) -> bool:
    """The length of a cache before the run: axis 2 of a port [batch,heads,past,size]."""
    scalar = producer(value, "Squeeze")
    length = producer(scalar.inputs[0], "Shape") if scalar is not None else None
    if length is None or length.inputs[0] is None or not str(length.inputs[0].name).startswith("past_key_values."):
        return False
    return (length.attributes.get_int("start", 0), length.attributes.get_int("end", 99)) == (2, 3)


def _below_unsqueeze(value: ir.Value | None) -> ir.Value | None:
    while (node := producer(value, "Unsqueeze")) is not None:
        value = node.inputs[0]
    return value
