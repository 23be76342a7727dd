# SPDX-License-Identifier: Apache-2.0
"""The operator set of portable graphs: older graphs are raised to it, newer ones restamped where that is the same."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from genai_bundle.builder.lowering.writer import UnfitError
from genai_bundle.sanitize import STANDARD

CONTRIB_DOMAIN = "com.microsoft"

OPSET, NEWEST = 23, 24
"""What rewrites are written in, and the newest set of a portable graph."""

IR_VERSION = 10
"""The first with all types of set 23."""

_LARGE = 1 << 10
"""Bytes. Larger tensors need not be seen to raise a graph."""


def is_standard(node: ir.Node) -> bool:
    """Whether the operator is one of the ONNX standard, of some version."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return domain in STANDARD and onnx.defs.has(node.op_type, domain=domain)


def bring_in(model: ir.Model) -> None:
    """Take small tensors out of other files: what they say, a shape for one, has to be seen."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= _LARGE:
            value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)


def name_strangers(model: ir.Model) -> None:
    """ONNX Runtime writes operators of its own into the standard's domain too: give them its domain."""
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx") and not is_standard(node):
            node.domain = CONTRIB_DOMAIN
            model.opset_imports.setdefault(CONTRIB_DOMAIN, 1)


def raised(model: ir.Model) -> ir.Model:
    """The model in at least OPSET, by onnx's own converter. Raises UnfitError."""
    model.ir_version = max(model.ir_version, IR_VERSION)
    if model.opset_imports.get("", OPSET) >= OPSET:
        model.opset_imports.setdefault("", OPSET)
        return model
    held = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > _LARGE
    }
    for name, tensor in held.items():
        shape = ir.Shape(tensor.shape)  # type: ignore[arg-type]
        away = ir.ExternalTensor("elsewhere", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
        model.graph.initializers[name].const_value = away
    try:
        found = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), OPSET))
    except Exception as error:  # the converter raises RuntimeError and its own kinds
        reason = " ".join(str(error).split())[:200]
        raise UnfitError(f"its operators cannot be raised to set {OPSET}: {reason}") from error
    for name, tensor in held.items():
        found.graph.initializers[name].const_value = tensor
    found.ir_version = max(found.ir_version, IR_VERSION)
    return found


def settle(model: ir.Model) -> list[str]:
    """Stamp a newer model NEWEST where every operator means the same there. Returns what does not."""
    version = model.opset_imports.get("", OPSET)
    if version <= NEWEST:
        return []
    left = {f"{node.op_type}: it is of operator set {version}" for node in model.graph.all_nodes() if _newer(node)}
    if not left:
        model.opset_imports[""] = NEWEST
    return sorted(left)


def _newer(node: ir.Node) -> bool:
    """Whether a node says something that NEWEST cannot. Since then operators got types, and these attributes."""
    if node.domain not in ("", "ai.onnx"):
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, NEWEST)
    except onnx.defs.SchemaError:
        return True
    return not {*node.attributes} <= {*schema.attributes} or len(node.inputs) > schema.max_input
