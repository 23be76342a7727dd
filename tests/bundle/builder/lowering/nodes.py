# SPDX-License-Identifier: Apache-2.0
"""Graphs of one node, lowered and run: on two engines the portable form has to give what the operator gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from genai_bundle.builder.lowering import lower
from genai_runner.backends.base import LoadOptions
from genai_runner.backends.reference import BACKEND

Array = NDArray[Any]
CONTRIB = "com.microsoft"
STANDARD = {"", "ai.onnx", "ai.onnx.ml"}


def draw(seed: int, *shape: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def one(
    op_type: str,
    feeds: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    domain: str = CONTRIB,
    weights: Mapping[str, Array] | None = None,
    opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node. Inputs come in the order of `feeds` and `weights`, where "_" begins a missing one.

    All axes of what is fed are open but the last.
    """
    weights = weights or {}
    names = [*feeds, *weights]
    node = onnx.helper.make_node(
        op_type, ["" if name.startswith("_") else name for name in names], list(outputs), "the.node", domain=domain,
        **attributes,
    )  # fmt: skip
    given = {name: array for name, array in feeds.items() if not name.startswith("_")}
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [port(name, array) for name, array in given.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs if name],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items() if not name.startswith("_")],
    )
    sets = [onnx.helper.make_opsetid("", opset)]
    sets += [onnx.helper.make_opsetid(domain, 1)] if domain else []
    return onnx.helper.make_model(graph, opset_imports=sets, ir_version=10)


def port(name: str, array: Array) -> onnx.ValueInfoProto:
    dims = [f"{name}.{axis}" for axis in range(array.ndim - 1)] + list(array.shape[-1:])
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), dims)


def portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in portable operators; fails where something is left."""
    found = lower(ir.from_proto(model))
    assert not found.left
    assert found.changed
    lowered = ir.to_proto(found.model)
    onnx.checker.check_model(lowered, full_check=True)
    assert {node.domain for node in nodes(lowered.graph)} <= STANDARD
    assert {entry.version for entry in lowered.opset_import if entry.domain == ""} <= {23, 24}
    return lowered


def left(model: onnx.ModelProto) -> str:
    return "; ".join(lower(ir.from_proto(model)).left)


def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*graph.node, *(node for body in inner for node in nodes(body))]


def by_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: array for name, array in feeds.items() if not name.startswith("_")}))


def by_reference(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    names = [value.name for value in model.graph.output]
    graph = BACKEND.load("one", model.SerializeToString(), {}, LoadOptions())
    found = graph.run({name: array for name, array in feeds.items() if not name.startswith("_")}, names)
    return [np.asarray(found[name]) for name in names]


def agrees(
    model: onnx.ModelProto, feeds: Mapping[str, Array], truth: Sequence[Array] | None = None, within: float = 2e-5
) -> onnx.ModelProto:
    """Compare the portable form with `truth`, or with what ONNX Runtime gives for the model. Returns that form."""
    expected = truth if truth is not None else by_onnxruntime(model, feeds)
    lowered = portable(model)
    for run in (by_onnxruntime, by_reference):
        for found, wanted in zip(run(lowered, feeds), expected, strict=True):
            assert found.shape == wanted.shape
            assert found.dtype == wanted.dtype
            np.testing.assert_allclose(found, wanted, rtol=within, atol=within, err_msg=run.__name__)
    return lowered
