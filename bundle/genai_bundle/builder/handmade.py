# SPDX-License-Identifier: Apache-2.0
"""Graphs that no checkpoint holds, written as ONNX text: what comes before and after a model's own graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir

from genai_bundle.builder.tidy import IR_VERSION

OPSET = 23


def graph(signature: str, body: str, constants: Mapping[str, Any]) -> ir.Model:
    """The graph `signature { body }`. Names that nothing makes are arrays of `constants`; others there are left out."""
    model = onnx.parser.parse_model(f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]> {signature} {{ {body} }}')
    used = {name for node in model.graph.node for name in node.input}
    for name, array in constants.items():
        if name in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(model)
