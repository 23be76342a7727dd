# SPDX-License-Identifier: Apache-2.0
"""The ONNX reference evaluator: slow, plain NumPy, and nobody's fast path. What it computes is the meaning of a graph.

It is the only file of the runner that imports `onnx.reference`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_loop

from .base import Array, Graph, LoadOptions, Tensor, only_cpu


class GatherElements(OpRun):
    """The evaluator's own one raises for negative axes and beyond 64 rows."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int | None = None) -> tuple[Array]:
        return (np.take_along_axis(data, indices, axis=axis or 0),)


class Loop(op_loop.Loop):
    """The evaluator's own one joins what iterations give along its first axis, where a new axis is due."""

    op_domain = ""

    def __init__(self, node: onnx.NodeProto, parameters: dict[str, Any]) -> None:
        super().__init__(node, parameters)  # type: ignore[no-untyped-call]
        self._run_once: Any = vars(self)["_run_body"]  # which the evaluator sets on the object
        self._run_body = self._run_and_add_axis
        self._scalars: list[int] = []

    def _run_and_add_axis(self, inputs: dict[str, Array], **how: Any) -> list[Array]:
        outputs: list[Array] = self._run_once(inputs, **how)
        first = len(outputs) - self.K
        self._scalars = [first - 1 + index for index, one in enumerate(outputs[first:]) if one.ndim == 0]
        return [*outputs[:first], *(one[np.newaxis] for one in outputs[first:])]

    def _run(self, *inputs: Any, **how: Any) -> tuple[Array, ...]:
        outputs: tuple[Array, ...] = super()._run(*inputs, **how)  # type: ignore[no-untyped-call]
        # Of scalars it makes a column.
        return tuple(one[:, 0] if index in self._scalars else one for index, one in enumerate(outputs))


class ReferenceGraph:
    precision = "exact"

    def __init__(self, evaluator: ReferenceEvaluator) -> None:
        self._evaluator = evaluator

    def fork(self) -> Graph:
        return self

    def array(self, tensor: Tensor) -> Array:
        return np.asarray(tensor)

    def run(
        self,
        feeds: Mapping[str, Tensor],
        want: Collection[str],
        *,
        keep: Collection[str] = (),
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Tensor]:
        names = list(want)
        with np.errstate(all="ignore"):  # an infinity that a later operator drops is not worth a warning
            outputs = dict(zip(names, self._evaluator.run(names, dict(feeds)), strict=True))
        for name, array in (into or {}).items():
            array[...] = outputs.pop(name)
        return outputs


class ReferenceBackend:
    name = "reference"
    version = onnx.__version__

    def load(self, graph: str, model: bytes, weights: Mapping[str, memoryview], options: LoadOptions) -> Graph:
        only_cpu(self.name, options)
        proto = onnx.load_from_string(model)
        for tensor in proto.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                place = {entry.key: entry.value for entry in tensor.external_data}
                start = int(place["offset"])
                tensor.raw_data = bytes(weights[place["location"]][start : start + int(place["length"])])
                tensor.ClearField("external_data")
                tensor.data_location = onnx.TensorProto.DEFAULT
        return ReferenceGraph(ReferenceEvaluator(proto, new_ops=[GatherElements, Loop]))


BACKEND = ReferenceBackend()
