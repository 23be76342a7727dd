# SPDX-License-Identifier: Apache-2.0
"""Attention with windows (operator set 25): the windows become part of a mask, which every engine obeys."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.lowering.attention import count_to, length_of, lowest
from genai_bundle.builder.lowering.writer import Values, Writer, dtype_of, given, must, rank_of

OPERATORS = {("", "Attention")}

_WINDOWS = ("left_window_size", "right_window_size")


def rewrite(node: ir.Node, write: Writer) -> Values | None:
    left, right = (node.attributes.get_int(name, -1) for name in _WINDOWS)
    if left < 0 and right < 0:
        for name in _WINDOWS:
            node.attributes.pop(name, None)
        return None
    query, key, mask, past, lengths = must(node, 0), must(node, 1), given(node, 3), given(node, 4), given(node, 6)
    axis = 2 if rank_of(query) == 4 else 1
    total = length_of(write, key, axis)
    sequence = length_of(write, query, axis)
    held = None
    if past is not None:
        held = length_of(write, past, 2)
        total = write("Add", total, held)
    rows = write("Unsqueeze", count_to(write, sequence), [1])
    if lengths is not None and past is None:  # the last query stands at the end of what its row holds
        held = write("Sub", write("Reshape", lengths, [-1, 1, 1, 1]), sequence)
    places = rows if held is None else write("Add", rows, held)
    keys = write("Unsqueeze", count_to(write, total), [0])
    distance = write("Sub", places, keys)
    limits = [("LessOrEqual", left, left), ("GreaterOrEqual", right, -right)]
    parts = [write(op, distance, np.array(limit, np.int64)) for op, size, limit in limits if size >= 0]
    window = parts[0] if len(parts) == 1 else write("And", *parts)
    kept = [attribute for name, attribute in node.attributes.items() if name not in _WINDOWS]
    inputs = [query, key, must(node, 2), _joined(write, window, mask, total, query), *node.inputs[4:]]
    made = ir.Node("", "Attention", inputs, attributes=kept, num_outputs=len(node.outputs))
    for value in node.outputs:
        if not value.name:
            made.outputs[value.index() or 0].name = ""
    write.add(made)
    return list(made.outputs)


def _joined(write: Writer, window: ir.Value, mask: ir.Value | None, total: ir.Value, query: ir.Value) -> ir.Value:
    """The window and a given mask, as a number that is added: a condition with nothing left is no number everywhere."""
    low = lowest(write, query)
    if mask is None:
        return write("Where", window, write.number(0.0, query), low)
    if dtype_of(mask) == ir.DataType.BOOL:
        mask = write("Where", mask, write.number(0.0, query), low)
    # A mask may end before the keys do: what it does not reach is hidden.
    short = write("Unsqueeze", write("Sub", total, length_of(write, mask, rank_of(mask) - 1)), [0])
    padded = write("Pad", mask, write("Concat", [0], short, axis=0), low, [-1])
    return write("Where", window, padded, low)
