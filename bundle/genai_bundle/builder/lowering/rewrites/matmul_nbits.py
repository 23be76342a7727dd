# SPDX-License-Identifier: Apache-2.0
"""MatMulNBits: a product with a matrix of four or eight bits, which DequantizeLinear reads as its bytes lie."""

from __future__ import annotations

import onnx_ir as ir

from genai_bundle.builder.lowering.weights import UNSIGNED, blocks_of, read_as, zeros
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer, allow, dtype_of, given, must

OPERATORS = {("com.microsoft", "MatMulNBits")}


def rewrite(node: ir.Node, write: Writer) -> Values:
    allow(node, weight_prepacked=0)
    bits = node.attributes.get_int("bits", 4)
    if bits not in UNSIGNED:
        raise UnfitError(f"its elements have {bits} bits")
    if (groups := given(node, 4)) is not None and (groups.const_value is None or groups.const_value.size):
        raise UnfitError("its blocks are chosen by a group index")
    product = write("MatMul", must(node, 0), write("Transpose", _matrix(node, write, bits), perm=[1, 0]))
    bias = given(node, 5)
    return [product if bias is None else write("Add", product, bias)]


def _matrix(node: ir.Node, write: Writer, bits: int) -> ir.Value:
    """The matrix [N, K]."""
    length, outer, block = (node.attributes[name].as_int() for name in ("K", "N", "block_size"))
    count = -(-length // block)
    values = must(node, 1)
    elements = write.weight(read_as(values, UNSIGNED[bits], [outer, count * block], "typed"))
    scales = blocks_of(write, must(node, 2), [outer], count)
    given_zeros = given(node, 3)
    if given_zeros is None or dtype_of(given_zeros) == ir.DataType.UINT8:
        name = f"{scales.name}"
        typed = write.weight(zeros(given_zeros, bits, [outer], count, name))
        whole = write("DequantizeLinear", elements, scales, typed, axis=1, block_size=block)
    else:
        numbers = write("Reshape", write("Cast", elements, to=dtype_of(scales)), [outer, count, block])
        centres = write("Unsqueeze", blocks_of(write, given_zeros, [outer], count), [2])
        scaled = write("Mul", write("Sub", numbers, centres), write("Unsqueeze", scales, [2]))
        whole = write("Reshape", scaled, [outer, count * block])
    return whole if count * block == length else write("Slice", whole, [0], [length], [1])
