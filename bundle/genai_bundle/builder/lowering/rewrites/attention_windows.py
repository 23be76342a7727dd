# SPDX-License-Identifier: Apache-2.0
"""Attention with windows (operator set 25): the windows become part of a mask, which every engine obeys."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.lowering.attention import HEADS_LAST, count_to, length_of, lowest
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer, dtype_of, given, must, rank_of

OPERATORS = {("", "Attention")}

_WINDOWS = ("left_window_size", "right_window_size")
_OWN = {*_WINDOWS, "is_causal", "q_num_heads", "kv_num_heads"}
"""Attributes that are written out."""


def rewrite(node: ir.Node, write: Writer) -> Values | None:
    left, right = (node.attributes.get_int(name, -1) for name in _WINDOWS)
    if left < 0 and right < 0:
        for name in _WINDOWS:
            node.attributes.pop(name, None)
        return None
    if given(node, 6) is not None:
        raise UnfitError("its rows say how many keys count")
    if len(node.outputs) > 3 and node.outputs[3].name:
        raise UnfitError("its scores are an output")
    query, key, value = must(node, 0), must(node, 1), must(node, 2)
    flat = rank_of(query) == 3
    if flat:
        counts = [node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
        query, key, value = (
            write("Transpose", write("Reshape", part, [0, 0, count, -1]), perm=HEADS_LAST)
            for part, count in zip((query, key, value), counts, strict=True)
        )
    right = 0 if node.attributes.get_int("is_causal", 0) and right != 0 else right
    seen, mask = _mask(node, write, query, key, (left, right))
    kept = [attribute for name, attribute in node.attributes.items() if name not in _OWN]
    made = ir.Node("", "Attention", [query, key, value, mask, *node.inputs[4:6]], attributes=kept, num_outputs=3)
    result, *present = made.outputs
    if given(node, 4) is None:
        for output in present:
            output.name = ""
    write.add(made)
    if given(node, 3) is not None:  # whoever sees nothing gets nothing
        some = write("ReduceMax", write("Cast", seen, to=ir.DataType.INT32), [-1], keepdims=1)
        result = write("Where", write("Greater", some, np.array(0, np.int32)), result, write.number(0.0, query))
    if flat:
        result = write("Reshape", write("Transpose", result, perm=HEADS_LAST), [0, 0, -1])
    return [result, *(present if given(node, 4) is not None else ())]


def _mask(
    node: ir.Node, write: Writer, query: ir.Value, key: ir.Value, windows: tuple[int, int]
) -> tuple[ir.Value, ir.Value]:
    """What is seen, as a condition and as a number that is added to a score."""
    mask, past = given(node, 3), given(node, 4)
    places = write("Unsqueeze", count_to(write, length_of(write, query, 2)), [1])
    total = length_of(write, key, 2)
    if past is not None:
        held = length_of(write, past, 2)
        places, total = write("Add", places, held), write("Add", total, held)
    distance = write("Sub", places, write("Unsqueeze", count_to(write, total), [0]))
    limits = [("LessOrEqual", windows[0], windows[0]), ("GreaterOrEqual", windows[1], -windows[1])]
    parts = [write(op, distance, np.array(limit, np.int64)) for op, size, limit in limits if size >= 0]
    low, zero, added = lowest(write, query), write.number(0.0, query), None
    if mask is not None:
        # A mask may end before the keys do: what it does not reach is hidden.
        short = write("Unsqueeze", write("Sub", total, length_of(write, mask, rank_of(mask) - 1)), [0])
        boolean = dtype_of(mask) == ir.DataType.BOOL
        filler = write.number(0 if boolean else -np.inf, mask)
        mask = write("Pad", mask, write("Concat", [0], short, axis=0), filler, [-1])
        parts.append(mask if boolean else write("Not", write("IsInf", mask, detect_positive=0)))
        added = None if boolean else mask
    seen = parts[0]
    for part in parts[1:]:
        seen = write("And", seen, part)
    return seen, write("Where", seen, zero if added is None else added, low)
