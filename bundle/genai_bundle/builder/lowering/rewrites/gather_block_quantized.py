# SPDX-License-Identifier: Apache-2.0
"""GatherBlockQuantized: rows of a quantised table."""

from __future__ import annotations

import onnx_ir as ir

from genai_bundle.builder.lowering.rows import Table, gather
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer, data_of, dtype_of, given, must, rank_of

OPERATORS = {("com.microsoft", "GatherBlockQuantized")}


def rewrite(node: ir.Node, write: Writer) -> Values:
    table, indices, scales, zeros = must(node, 0), must(node, 1), must(node, 2), given(node, 3)
    kind, rank = dtype_of(table), rank_of(table)
    dims = [int(dim) for dim in data_of(table, "its elements").numpy().shape]
    packed = kind == ir.DataType.UINT8
    bits = node.attributes.get_int("bits", 4) if packed else 4
    block = node.attributes.get_int("block_size", 128)
    if bits not in (4, 8) or (not packed and kind != ir.DataType.UINT4):
        raise UnfitError(f"its elements are {kind.name} of {bits} bits")
    axes = [
        node.attributes.get_int(name, default) % rank for name, default in (("gather_axis", 0), ("quantize_axis", 1))
    ]
    if axes != [0, rank - 1]:
        raise UnfitError("it gathers along another axis than the first, or blocks lie along another than the last")
    length = dims[-1] * (8 // bits if packed else 1)
    if length % block or (not packed and length % 2):
        raise UnfitError(f"its rows of {length} are no whole blocks of {block}")
    middle = 1 << (bits - 1) if packed else 0
    return [gather(write, Table(table, scales, zeros, dims[0], dims[1:-1], length, bits, block, middle), indices)]
