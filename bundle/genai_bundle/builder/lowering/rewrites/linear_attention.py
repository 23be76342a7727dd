# SPDX-License-Identifier: Apache-2.0
"""LinearAttention: the recurrence token by token, as a Scan.

ONNX's own body of the operator says the same, but its Scan reads values from around it, which one engine cannot.
S is the state [batch,kept heads,key size,value size]; with a decay g, S = exp(g) S first; with a rate b, what is
written is b (v - S^T k) in the place of v; the result is scale S^T q (the operator's specification, set 27).
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.lowering import bodies
from genai_bundle.builder.lowering.writer import Values, Writer, dtype_of, given, must, size_of

OPERATORS = {("", "LinearAttention")}

_TIME_FIRST = [1, 0, 2, 3]


def rewrite(node: ir.Node, write: Writer) -> Values:
    queries, kept = (node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads"))
    rule = node.attributes.get_string("update_rule", "gated_delta")
    query, key, value, past = must(node, 0), must(node, 1), must(node, 2), given(node, 3)
    width, depth = size_of(key, 2), size_of(value, 2)
    if width is None or depth is None:
        return bodies.rewrite(node, write)
    sizes = (width // kept, depth // kept)
    kind = dtype_of(query)
    parts = [(query, [0, 0, kept, queries // kept, sizes[0]], [1, 0, 2, 3, 4])]
    parts += [(key, [0, 0, kept, sizes[0]], _TIME_FIRST), (value, [0, 0, kept, sizes[1]], _TIME_FIRST)]
    parts += [(must(node, 4), [0, 0, kept, -1], _TIME_FIRST)] if "gated" in rule else []
    parts += [(must(node, 5), [0, 0, -1, 1], _TIME_FIRST)] if "delta" in rule else []
    scanned = [
        write("Transpose", _wide(write, write("Reshape", part, shape)), perm=turn) for part, shape, turn in parts
    ]
    if past is None:
        shape = write("Concat", write("Shape", query, start=0, end=1), [kept, *sizes], axis=0)
        past = write("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, np.float32)))
    scale = node.attributes.get_float("scale", 0.0) or 1 / sqrt(sizes[0])
    body = _body(write, scanned, rule, scale)
    state, results = write.several(
        "Scan", 2, _wide(write, past), *scanned, body=body, num_scan_inputs=len(scanned)
    )  # fmt: skip
    flat = write("Reshape", write("Transpose", results, perm=[1, 0, 2, 3, 4]), [0, 0, queries * sizes[1]])
    if kind == ir.DataType.FLOAT:
        return flat, state
    return write("Cast", flat, to=kind), write("Cast", state, to=kind)


def _wide(write: Writer, value: ir.Value) -> ir.Value:
    return value if dtype_of(value) == ir.DataType.FLOAT else write("Cast", value, to=ir.DataType.FLOAT)


def _body(around: Writer, scanned: list[ir.Value], rule: str, scale: float) -> ir.Graph:
    """From the state and one token's [batch,..] to the next state and the result [batch,kept heads,group,value size].

    It reads nothing but its inputs.
    """
    write = Writer(around.node, around.model)
    ranks = [4, *(len(value.shape or ()) - 1 for value in scanned)]
    names = ["state", "query", "key", "value", *(["decay"] if "gated" in rule else []), "rate"][: len(ranks)]
    ports = {
        name: ir.Value(
            name=f"{around.prefix}.{name}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None] * rank)
        )
        for name, rank in zip(names, ranks, strict=True)
    }  # fmt: skip
    state, column = ports["state"], write("Unsqueeze", ports["key"], [-1])
    if "decay" in ports:
        state = write("Mul", state, write("Unsqueeze", write("Exp", ports["decay"]), [-1]))
    new = ports["value"]
    if "rate" in ports:
        known = write("Squeeze", write("MatMul", write("Transpose", state, perm=[0, 1, 3, 2]), column), [-1])
        new = write("Mul", ports["rate"], write("Sub", new, known))
    state = write("Add", state, write("MatMul", column, write("Unsqueeze", new, [-2])))
    read = write("Mul", write("MatMul", ports["query"], state), np.array(scale, np.float32))
    return ir.Graph(list(ports.values()), [state, read], nodes=write.nodes, name=f"{around.prefix}.step")
