# SPDX-License-Identifier: Apache-2.0
"""Adapters on the way out: others do not know the ports that they feed, so one is fixed into the graph, or none.

None is what a request without an adapter gets: zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import helper, numpy_helper

from genai_bundle.errors import UsageError

if TYPE_CHECKING:
    import onnx

    from genai_bundle.bundle import Bundle
    from genai_bundle.manifest import Manifest


def fix_adapter(bundle: Bundle, graph: str, model: onnx.ModelProto, adapter: str | None) -> onnx.ModelProto:
    """Make constants of the inputs that adapters feed, in the model, which is changed.

    Raises:
        UsageError: the bundle has no adapter of that name.
    """
    adapters = bundle.manifest.adapters
    if adapter is not None and adapter not in adapters:
        known = ", ".join(adapters) or "none"
        raise UsageError(f"the bundle has no adapter {adapter!r}", where="--adapter", hint=f"It has {known}")
    members = {name: one.graphs[graph] for name, one in adapters.items() if graph in one.graphs}
    ports = {port for member in members.values() for port in bundle.ports(member).outputs}
    tensors = {}
    if adapter in members:
        tensors = {tensor.name: tensor for tensor in bundle.graph(members[adapter]).graph.initializer}
    kept = []
    for value in model.graph.input:
        if value.name not in ports:
            kept.append(value)
            continue
        model.graph.initializer.append(tensors.get(value.name) or _zeros(value))
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


def other_adapters(manifest: Manifest, adapter: str | None) -> list[str]:
    """What is lost: one line for each adapter that was not taken."""
    return [f"adapters: {name!r} (--adapter {name} takes it)" for name in manifest.adapters if name != adapter]


def _zeros(value: onnx.ValueInfoProto) -> onnx.TensorProto:
    """Zeros of the port's shape; an open dim, such as the rank, is 1."""
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in tensor.shape.dim]
    return numpy_helper.from_array(np.zeros(shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type)), value.name)
