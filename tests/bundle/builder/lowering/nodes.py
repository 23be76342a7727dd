# SPDX-License-Identifier: Apache-2.0
"""Graphs of one node, lowered and run: on every engine the portable form has to give what the operator gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
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

    All axes of what is fed are open but the last, and the second of four, which counts heads.
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
    fixed = {array.ndim - 1, *([1] if array.ndim == 4 else [])}
    dims = [size if axis in fixed else f"{name}.{axis}" for axis, size in enumerate(array.shape)]
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), dims)


def portable(model: onnx.ModelProto, ranks: Sequence[int] = ()) -> onnx.ModelProto:
    """The model in portable operators; fails where something is left. ranks: of outputs whose shape is not stated."""
    found = lower(ir.from_proto(model))
    assert not found.left, found.left
    assert found.changed
    for value, rank in zip(found.model.graph.outputs, ranks, strict=False):
        value.shape = value.shape if value.shape is not None else ir.Shape([None] * rank)
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


def by_openvino(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"EXECUTION_MODE_HINT": "ACCURACY", "NUM_STREAMS": 1}
    )
    names = {name for port in compiled.inputs for name in port.names}  # it drops inputs that nothing reads
    request = compiled.create_infer_request()
    request.infer({name: array for name, array in feeds.items() if name in names})
    return [np.array(request.get_tensor(port).data) for port in compiled.outputs]


def engines() -> list[Callable[[onnx.ModelProto, Mapping[str, Array]], list[Array]]]:
    """What portable forms are run on: OpenVINO where it is installed."""
    return [by_onnxruntime, by_reference, *([by_openvino] if find_spec("openvino") else [])]


def agrees(
    model: onnx.ModelProto, feeds: Mapping[str, Array], truth: Sequence[Array] | None = None, within: float = 2e-5
) -> onnx.ModelProto:
    """Compare the portable form with `truth`, or with what ONNX Runtime gives for the model. Returns that form."""
    expected = truth if truth is not None else by_onnxruntime(model, feeds)
    lowered = portable(model, [array.ndim for array in expected])
    for run in engines():
        for found, wanted in zip(run(lowered, feeds), expected, strict=True):
            assert found.shape == wanted.shape
            assert found.dtype == wanted.dtype
            np.testing.assert_allclose(found, wanted, rtol=within, atol=within, err_msg=run.__name__)
    return lowered
