# SPDX-License-Identifier: Apache-2.0
"""Two graphs: ports, operator sets, how often each operator occurs, and the first nodes that the other lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from genai_bundle.sanitize import ports_of

if TYPE_CHECKING:
    import onnx

    from genai_bundle.bundle import Bundle

Json = Any
GraphFile = str
"""The member of a graph in one of its forms."""

SHOWN = 5
"""Nodes of each side that are named; all are counted."""

LONG = 160


def graph_files(bundle: Bundle) -> dict[str, GraphFile]:
    """Every graph file by its role: `decoder`, `decoder (ort-cpu)`, `decoder (adapter pirate)`."""
    manifest = bundle.manifest
    found: dict[str, GraphFile] = {}
    for name, entry in manifest.graphs.items():
        found[name] = entry.file
        found |= {f"{name} ({variant.name})": variant.file for variant in entry.variants}
    for adapter, one in manifest.adapters.items():
        found |= {f"{graph} (adapter {adapter})": path for graph, path in one.graphs.items()}
    return found


def graph_changes(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, Json]:
    """What differs in how the two compute; nothing where only names of nodes or notes do. Initializers: `tensors`."""
    sides = [_facts(model) for model in (before, after)]
    found = {
        key: {"before": sides[0][key], "after": sides[1][key]} for key in sides[0] if sides[0][key] != sides[1][key]
    }
    nodes = [Counter(_nodes(model)) for model in (before, after)]
    counts = [Counter(_operators(model)) for model in (before, after)]
    operators = {
        name: {"before": counts[0][name], "after": counts[1][name]}
        for name in sorted(counts[0] | counts[1])
        if counts[0][name] != counts[1][name]
    }
    if operators:
        found["operators"] = operators
    gone, come = nodes[0] - nodes[1], nodes[1] - nodes[0]
    if gone or come:
        found["nodes"] = {"removed": _some(before, gone), "added": _some(after, come)}
    elif list(_nodes(before)) != list(_nodes(after)):
        found["nodes"] = {"order": "the same nodes in another order"}
    return found


def _facts(model: onnx.ModelProto) -> dict[str, Json]:
    """What a graph says of itself, each by a word."""
    ports = ports_of(model)
    written = [
        {port.name: f"{port.dtype}[{','.join(map(str, port.dims))}]" for port in side.values()}
        for side in (ports.inputs, ports.outputs)
    ]
    opsets = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    functions = sorted(f"{function.domain}.{function.name}" for function in model.functions)
    return {
        "ir": model.ir_version,
        "opset": opsets,
        "inputs": written[0],
        "outputs": written[1],
        "functions": functions,
    }


def _bodies(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _operators(model: onnx.ModelProto) -> Iterator[str]:
    return (f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in _bodies(model))


def _nodes(model: onnx.ModelProto) -> Iterator[bytes]:
    """Each node without its name and notes: what it computes, from which values, to which."""
    for node in _bodies(model):
        yield _bare(node)


def _bare(node: onnx.NodeProto) -> bytes:
    copy = type(node)()
    copy.CopyFrom(node)
    for field in ("name", "doc_string", "metadata_props"):
        copy.ClearField(field)
    attributes = sorted(copy.attribute, key=lambda attribute: attribute.name)
    del copy.attribute[:]
    copy.attribute.extend(attributes)
    raw: bytes = copy.SerializeToString(deterministic=True)
    return raw


def _some(model: onnx.ModelProto, wanted: Counter[bytes]) -> Json:
    """How many of these nodes there are, and the first few as text."""
    left, texts = Counter(wanted), list[str]()
    for node in _bodies(model):
        raw = _bare(node)
        if left[raw] and len(texts) < SHOWN:
            left[raw] -= 1
            texts.append(_text(node))
    return {"count": wanted.total(), "first": texts}


def _text(node: onnx.NodeProto) -> str:
    """One line, such as `y = MatMul(x, w)`."""
    from onnx import helper

    words = []
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        shown = f"<{type(value).__name__}>" if hasattr(value, "DESCRIPTOR") else repr(value)
        words.append(f"{attribute.name}={shown}")
    domain = f"{node.domain}." if node.domain else ""
    text = f"{', '.join(node.output)} = {domain}{node.op_type}({', '.join([*node.input, *words])})"
    return text if len(text) <= LONG else text[: LONG - 1] + "…"
