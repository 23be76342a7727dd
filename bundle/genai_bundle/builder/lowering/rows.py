# SPDX-License-Identifier: Apache-2.0
"""Rows of a quantised table, gathered in their stored form and dequantised then: the table never is as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.lowering.weights import blocks_of, read_as
from genai_bundle.builder.lowering.writer import UnfitError, Writer, data_of, dtype_of, rank_of


@dataclass(frozen=True)
class Table:
    """rows × [*inner, length] elements in blocks along the last axis; an element q stands for (q - zero) × scale.

    `middle` is the zero of all blocks where `zeros` is None.
    """

    elements: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    rows: int
    inner: list[int]
    length: int
    bits: int
    block: int
    middle: int

    @property
    def count(self) -> int:
        """Blocks of the last axis."""
        return self.length // self.block


def gather(write: Writer, table: Table, indices: ir.Value) -> ir.Value:
    """The rows [*indices, *inner, length] in the type of the scales. Raises UnfitError."""
    lead, kind = rank_of(indices), dtype_of(table.scales)
    numbers = _elements(write, table.elements, table, indices, [*table.inner, table.count, table.block])
    numbers = write("Cast", numbers, to=kind)
    if table.zeros is None:
        centres = write.number(table.middle, table.scales)
    else:
        centres = _elements(write, table.zeros, table, indices, [*table.inner, table.count])
        centres = write("Unsqueeze", write("Cast", centres, to=kind), [-1])
    scales = blocks_of(write, table.scales, [table.rows, *table.inner], table.count)
    column = write("Unsqueeze", write("Gather", scales, indices, axis=0), [-1])
    scaled = write("Mul", write("Sub", numbers, centres), column)
    return write("Reshape", scaled, [*[0] * lead, *table.inner, table.length])


def _elements(write: Writer, packed: ir.Value, table: Table, indices: ir.Value, last: list[int]) -> ir.Value:
    """Gathered rows of a packed constant, one element in each place: [*indices, *last].

    Elements are packed along the last axis of `last` that is not a block's, or along all of them.
    """
    tensor = data_of(packed, f"the elements of {packed.name}")
    whole, lead = prod(last), rank_of(indices)
    width, rest = divmod(tensor.nbytes, table.rows)
    if rest:
        raise UnfitError(f"rows of {packed.name} end within a byte")
    stored = write.weight(read_as(packed, ir.DataType.UINT8, [table.rows, width], "packed"))
    rows = write("Gather", stored, indices, axis=0)
    if table.bits == 4:
        rows = write("Cast", rows, to=ir.DataType.UINT32)  # bytes are not shifted rightly everywhere
        low = write("BitwiseAnd", rows, np.array(15, np.uint32))
        high = write("BitShift", rows, np.array(4, np.uint32), direction="RIGHT")
        rows = write("Concat", write("Unsqueeze", low, [-1]), write("Unsqueeze", high, [-1]), axis=-1)
    found = width * 8 // table.bits
    if found == whole:
        return write("Reshape", rows, [*[0] * lead, *last])
    # An odd number of zeros ends with half a byte: of each part of a row, or of the row.
    if found == prod(last[:-1]) * (last[-1] + 1):
        rows = write("Reshape", rows, [*[0] * lead, *last[:-1], last[-1] + 1])
        return write("Slice", rows, [0], [last[-1]], [-1])
    if found == whole + 1:
        rows = write("Slice", write("Reshape", rows, [*[0] * lead, found]), [0], [whole], [-1])
        return write("Reshape", rows, [*[0] * lead, *last])
    raise UnfitError(f"rows of {packed.name} have {found} elements, which are not {last}")
