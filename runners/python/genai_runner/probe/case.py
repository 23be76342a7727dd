# SPDX-License-Identifier: Apache-2.0
"""A probe's case: a graph of a few nodes whose answer needs no engine, and what of a graph it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from ..backends.base import Array
from .use import Use

IR_VERSION = 11
TOLERANCE = {"exact": 1e-3, "fast": 0.05}
"""How far an output may be off, in shares of its largest value: rounding stays below, what is wrong far above."""


@dataclass(frozen=True)
class Case:
    """`operator` as graphs spell it, with its domain; `what` of it is tried, in a few words.

    `graph` is ONNX text, run with `feeds`; `expected` are its outputs in their order, made by NumPy or by hand.
    `constants` are initializers of types that the text has no literals for: element type and values.
    `touches` says of a node whether its result hangs on what is tried here. None: nothing in a graph shows it, because
    it depends on the values that flow through, so the case is for people to read.
    """

    operator: str
    what: str
    graph: str
    feeds: Mapping[str, Any]
    expected: tuple[Any, ...]
    touches: Callable[[Use], bool] | None = field(default=lambda _: True)
    opset: int = 23
    constants: Mapping[str, tuple[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.operator}: {self.what}" if self.what else self.operator

    def model(self) -> onnx.ModelProto:
        domains = f'["" : {self.opset}, "com.microsoft" : 1, "probe" : 1]'
        model = onnx.parser.parse_model(f"<ir_version: {IR_VERSION}, opset_import: {domains}>\n{self.graph}")
        for name, (kind, values) in self.constants.items():
            dtype = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(kind))
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values).astype(dtype), name))
        return model

    def is_right(self, outputs: list[Array], precision: str) -> bool:
        return all(
            _same(found, np.asarray(wanted), TOLERANCE[precision])
            for found, wanted in zip(outputs, self.expected, strict=True)
        )


def _same(found: Array, wanted: Array, tolerance: float) -> bool:
    if found.shape != wanted.shape:
        return False
    if wanted.dtype.kind == "f":
        return bool(np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max())  # false for NaN too
    return bool((found == wanted).all())
