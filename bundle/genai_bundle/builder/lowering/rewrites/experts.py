# SPDX-License-Identifier: Apache-2.0
"""MoE and QMoE: the best experts of each token, whose matrices are gathered, in their stored form where quantised."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.lowering.rows import Table, gather
from genai_bundle.builder.lowering.writer import UnfitError, Values, Writer, allow, given, must, rank_of, size_of

OPERATORS = {("com.microsoft", "MoE"), ("com.microsoft", "QMoE")}

_PARTS = {"MoE": ((2, 3), (4, 5), (6, 7)), "QMoE": ((2, 4, 3, 11), (5, 7, 6, 12), (8, 10, 9, 13))}
"""Inputs of each of the three matrices: elements and bias, then scales and zeros."""

_ACTIVATIONS = ("relu", "gelu", "silu", "swiglu", "identity")


def rewrite(node: ir.Node, write: Writer) -> Values:
    allow(node, use_sparse_mixer=0, swiglu_limit_after_activation=0, quant_type="int")
    kind = node.attributes.get_string("activation_type", "relu")
    if kind not in _ACTIVATIONS:
        raise UnfitError(f"its activation is {kind}")
    if any(given(node, index) is not None for index in (*_PARTS[node.op_type][2], *range(15, 21))):
        raise UnfitError("it has a third matrix or further scales")
    tokens, width = must(node, 0), size_of(must(node, 0), -1)
    if width is None:
        raise UnfitError("the width of its input is unknown")
    rows = tokens if rank_of(tokens) == 2 else write("Reshape", tokens, [-1, width])
    weights, chosen = _choice(node, write)
    column = write("Unsqueeze", rows, [1, 3])  # [tokens,1,width,1]
    hidden = _activated(node, write, _product(node, write, 0, chosen, column), kind)
    results = _product(node, write, 1, chosen, write("Unsqueeze", hidden, [3]))
    total = write("ReduceSum", write("Mul", results, write("Unsqueeze", weights, [2])), [1], keepdims=0)
    return [total if rank_of(tokens) == 2 else write("Reshape", total, write("Shape", tokens))]


def _choice(node: ir.Node, write: Writer) -> tuple[ir.Value, ir.Value]:
    """How much each chosen expert counts, and which they are: both [tokens,k]."""
    router, mixing = must(node, 1), given(node, 14) if node.op_type == "QMoE" else None
    count = [node.attributes.get_int("k", 1)]
    normalise = node.attributes.get_int("normalize_routing_weights", 0) == 1
    best, chosen = write.several("TopK", 2, router, count, axis=-1)
    if mixing is not None:
        shares = write("GatherElements", mixing, chosen, axis=1)
        whole = write("ReduceSum", shares, [-1], keepdims=1)
        return (write("Div", shares, whole) if normalise else shares), chosen
    if normalise:
        return write("Softmax", best, axis=-1), chosen
    return write("GatherElements", write("Softmax", router, axis=-1), chosen, axis=1), chosen


def _product(node: ir.Node, write: Writer, part: int, chosen: ir.Value, column: ir.Value) -> ir.Value:
    """The chosen experts' matrices [tokens,k,outputs,inputs] times `column` [..,inputs,1], and their bias."""
    elements, bias, *quantised = _PARTS[node.op_type][part]
    matrices = _quantised(node, write, part, chosen) if quantised else write("Gather", must(node, elements), chosen)
    product = write("Squeeze", write("MatMul", matrices, column), [3])
    more = given(node, bias)
    return product if more is None else write("Add", product, write("Gather", more, chosen))


def _quantised(node: ir.Node, write: Writer, part: int, chosen: ir.Value) -> ir.Value:
    allow(node, weights_prepacked=0)
    elements, _, scales, zeros = _PARTS["QMoE"][part]
    bits = node.attributes.get_int(f"fc{part + 1}_expert_weight_bits", node.attributes.get_int("expert_weight_bits", 4))
    dims = [size_of(must(node, elements), axis) for axis in range(3)]
    if bits not in (4, 8) or any(dim is None for dim in dims):
        raise UnfitError(f"its elements have {bits} bits, or a size that is unknown")
    rows, outer, width = (dim or 0 for dim in dims)
    length = width * 8 // bits
    block = node.attributes.get_int("block_size", 0) or length
    table = Table(
        must(node, elements), must(node, scales), given(node, zeros), rows, [outer], length, bits, block,
        middle=1 << (bits - 1),
    )  # fmt: skip
    return gather(write, table, chosen)


def _activated(node: ir.Node, write: Writer, value: ir.Value, kind: str) -> ir.Value:
    if kind == "relu":
        return write("Relu", value)
    if kind == "gelu":
        return write("Gelu", value, approximate="tanh")
    if kind == "silu":
        return write("Mul", value, write("Sigmoid", value))
    return _gated(node, write, value) if kind == "swiglu" else value


def _gated(node: ir.Node, write: Writer, value: ir.Value) -> ir.Value:
    """g sigmoid(alpha g) (l + beta), of g and l in turn or one after the other, both clipped to a limit."""
    fusion, size = node.attributes.get_int("swiglu_fusion", 0), size_of(value, 2)
    if fusion not in (1, 2) or size is None:
        raise UnfitError("its gate is a matrix of its own")
    if fusion == 1:
        pairs = write("Reshape", value, [0, 0, size // 2, 2])
        gate, linear = (write("Squeeze", one, [3]) for one in write.several("Split", 2, pairs, [1, 1], axis=3))
    else:
        gate, linear = write.several("Split", 2, value, [size // 2, size // 2], axis=2)
    if "swiglu_limit" in node.attributes:
        limit = node.attributes["swiglu_limit"].as_float()
        if np.isfinite(limit):
            high, low = write.number(limit, value), write.number(-limit, value)
            gate, linear = write("Min", gate, high), write("Max", write("Min", linear, high), low)
    alpha, beta = (
        node.attributes.get_float(f"activation_{name}", default) for name, default in (("alpha", 1.0), ("beta", 0.0))
    )
    gate = write("Mul", gate, write("Sigmoid", write("Mul", gate, write.number(alpha, value))))
    return write("Mul", gate, write("Add", linear, write.number(beta, value)) if beta else linear)
