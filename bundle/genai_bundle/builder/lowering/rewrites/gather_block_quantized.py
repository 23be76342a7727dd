# SPDX-License-Identifier: Apache-2.0
"""GatherBlockQuantized: rows of a quantised table, gathered in their stored form and dequantised then."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.lowering.weights import read_as
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer, data_of, dtype_of, given, must, rank_of

OPERATORS = {("com.microsoft", "GatherBlockQuantized")}


def rewrite(node: ir.Node, write: Writer) -> Values:
    table, indices, scales, zeros = must(node, 0), must(node, 1), must(node, 2), given(node, 3)
    dtype, rank = dtype_of(table), rank_of(table)
    dims = [int(dim) for dim in data_of(table, "its elements").shape]  # type: ignore[arg-type]
    packed = dtype == ir.DataType.UINT8
    bits = node.attributes.get_int("bits", 4) if packed else 4
    block = node.attributes.get_int("block_size", 128)
    if bits not in (4, 8) or (not packed and dtype != ir.DataType.UINT4):
        raise UnfitError(f"its elements are {dtype.name} of {bits} bits")
    if (
        node.attributes.get_int("gather_axis", 0) % rank
        or node.attributes.get_int("quantize_axis", 1) % rank != rank - 1
    ):
        raise UnfitError("it gathers along another axis than the first, or blocks lie along another than the last")
    length = dims[-1] * (8 // bits if packed else 1)
    if length % block or (not packed and length % 2):
        raise UnfitError(f"its rows of {length} are no whole blocks of {block}")
    count, inner = length // block, dims[1:-1]
    stored = write.weight(read_as(table, ir.DataType.UINT8, [*dims[:-1], length * bits // 8], "packed"))
    numbers = _elements(write, write("Gather", stored, indices), bits, [*inner, count, block], rank_of(indices))
    numbers = write("Cast", numbers, to=dtype_of(scales))
    middle = 0 if zeros is None and not packed else 1 << (bits - 1)
    centre = (
        write.number(middle, scales)
        if zeros is None
        else _centres(write, zeros, indices, bits, [*inner, count], scales)
    )
    column = write("Unsqueeze", write("Gather", scales, indices), [-1])
    scaled = write("Mul", write("Sub", numbers, centre), column)
    return [write("Reshape", scaled, [*[0] * rank_of(indices), *inner, length])]


def _centres(write: Writer, zeros: ir.Value, indices: ir.Value, bits: int, last: list[int], like: ir.Value) -> ir.Value:
    """The zeros of gathered rows, with an axis of one behind."""
    tensor = data_of(zeros, "its zeros")
    rows = tensor.numpy().shape[0]
    outer: list[int] = [rows, *last[:-1]]
    width = tensor.nbytes // prod(outer)
    if width * prod(outer) != tensor.nbytes:
        raise UnfitError("rows of its zeros end within a byte")
    stored = write.weight(read_as(zeros, ir.DataType.UINT8, [*outer, width], "packed"))
    found = _elements(write, write("Gather", stored, indices), bits, [*last[:-1], width * 8 // bits], rank_of(indices))
    if width * 8 // bits != last[-1]:
        found = write("Slice", found, [0], [last[-1]], [-1])
    return write("Unsqueeze", write("Cast", found, to=dtype_of(like)), [-1])


def _elements(write: Writer, rows: ir.Value, bits: int, last: list[int], lead: int) -> ir.Value:
    """One element in each place; the axes after the first `lead` become `last`."""
    if bits == 4:
        rows = write("Cast", rows, to=ir.DataType.UINT32)  # bytes are not shifted rightly everywhere
        low = write("BitwiseAnd", rows, np.array(15, np.uint32))
        high = write("BitShift", rows, np.array(4, np.uint32), direction="RIGHT")
        rows = write("Concat", write("Unsqueeze", low, [-1]), write("Unsqueeze", high, [-1]), axis=-1)
    return write("Reshape", rows, [*[0] * lead, *last])
