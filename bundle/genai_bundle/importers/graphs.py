# SPDX-License-Identifier: Apache-2.0
"""Foreign ONNX files as graphs of a bundle: read, brought into the form that a bundle may hold, packed.

What is changed is where bytes lie, never what is computed: weights of branches move to the main graph, for a bundle
keeps external data there only, and a graph that was frozen at several rows gets one row, repeated inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from genai_bundle.builder.graph_files import pack_graph, parse_text, read_file, used
from genai_bundle.builder.portable_form import ORT
from genai_bundle.builder.shards import INLINE
from genai_bundle.errors import GraphError, SourceError
from genai_bundle.ports import Ports
from genai_bundle.sanitize import MAX_OPSET, STANDARD, ports_of, sanitize
from genai_bundle.writer import Shard, Source


@dataclass(frozen=True)
class SourceGraph:
    """A graph of the manifest. `file` is None for one that an importer made; `host`: it has to be exact.

    portable: the same in operators that every backend has, where `model` needs one engine's. runs: what a plain loop
    can run of the source, where that is not the file.
    """

    name: str
    model: onnx.ModelProto
    file: Path | None = None
    host: bool = False
    portable: onnx.ModelProto | None = None
    runs: onnx.ModelProto | None = None

    @property
    def ports(self) -> Ports:
        return ports_of(self.model)

    @property
    def where(self) -> str:
        return self.file.name if self.file else f"the graph {self.name}"

    def error(self, message: str, hint: str | None = None) -> SourceError:
        return SourceError(message, where=self.where, hint=hint)


def read_graph(name: str, file: Path) -> SourceGraph:
    """Read an ONNX file, its external data left where it is. Raises SourceError."""
    if not file.is_file():
        raise SourceError(f"the graph {file.name} is missing", where=str(file.parent), hint="Download the whole folder")
    model = read_file(file, file.name)
    for node in model.graph.node:
        if node.op_type == "EPContext":
            raise SourceError(
                f"node {node.name!r} (EPContext) holds code compiled for one engine", where=file.name,
                hint="Import the folder that was made for the CPU",
            )  # fmt: skip
    _hoist(model)
    return SourceGraph(name, model, file)


def made_graph(name: str, text: str) -> SourceGraph:
    """A small graph of an importer's own, from ONNX's textual form."""
    return SourceGraph(name, parse_text(text, name), host=True)


def pack_graphs(
    graphs: Sequence[SourceGraph],
) -> tuple[dict[str, dict[str, Any]], dict[str, Source], list[str]]:
    """The manifest's `graphs`, the members, and the features to require.

    Raises SourceError, naming file and node, where a bundle may not hold a graph.
    """
    entries: dict[str, dict[str, Any]] = {}
    members: dict[str, Source] = {}
    for graph in graphs:
        member, original = f"{graph.name}.onnx", f"{graph.name}.{ORT}.onnx"
        forms = {member: graph.model} if graph.portable is None else {member: graph.portable, original: graph.model}
        if graph.portable is not None and not _readable(graph.model):
            del forms[original]
        folder = graph.file.parent if graph.file else None
        copies = {file: onnx.ModelProto.FromString(model.SerializeToString()) for file, model in forms.items()}
        files, shards = pack_graph(graph.name, {file: (model, folder, graph.where) for file, model in copies.items()})
        for data in files.values():
            _check(graph, data, shards)
        entries[graph.name] = {"file": member, **({"place": "host"} if graph.host else {})}
        if original in forms:
            variant = {"name": ORT, "when": {"backend": "onnxruntime"}, "file": original}
            entries[graph.name]["variants"] = [variant]
        members |= files
        members |= shards
    return entries, members, used(graph.portable or graph.model for graph in graphs)


def _readable(model: onnx.ModelProto) -> bool:
    """Whether a bundle may hold the operator set."""
    return all(entry.version <= MAX_OPSET for entry in model.opset_import if entry.domain in STANDARD)


def _check(graph: SourceGraph, data: bytes, shards: Mapping[str, Shard]) -> None:
    sizes = {path: shard.size for path, shard in shards.items()}
    try:
        sanitize(data, file=graph.where, members=sizes)
    except GraphError as error:
        raise SourceError(error.message, where=error.where, rule=error.rule, hint=error.hint) from error


# -- weights of branches ----------------------------------------------------------------------------------------------


def _hoist(model: onnx.ModelProto) -> None:
    """Move the large initializers of branches and loop bodies to the main graph, under names of their own."""
    taken = {tensor.name for tensor in model.graph.initializer} | set(_values(model.graph))
    for graph in list(_subgraphs(model.graph.node)):
        kept = []
        for tensor in graph.initializer:
            if not tensor.external_data and len(tensor.raw_data) < INLINE:
                kept.append(tensor)
                continue
            name = _fresh(tensor.name, taken)
            taken.add(name)
            _rename(graph, {tensor.name: name})
            moved = model.graph.initializer.add()
            moved.CopyFrom(tensor)
            moved.name = name
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _fresh(name: str, taken: Iterable[str]) -> str:
    names = set(taken)
    return next(one for one in (name, *(f"{name}.{index}" for index in range(len(names) + 1))) if one not in names)


def _values(graph: onnx.GraphProto) -> Iterator[str]:
    """All names that a graph and its subgraphs give, initializers of subgraphs excluded."""
    yield from (value.name for value in graph.input)
    for node in graph.node:
        yield from node.output
    for inner in _subgraphs(graph.node):
        yield from (value.name for value in inner.input)
        for node in inner.node:
            yield from node.output


def _subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield graph
                yield from _subgraphs(graph.node)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Change what nodes read and give, in subgraphs too."""
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name in names:
                    field[index] = names[name]
    for value in graph.output:
        value.name = names.get(value.name, value.name)
    for inner in _subgraphs(graph.node):
        _rename(inner, names)


# -- graphs frozen at several rows ------------------------------------------------------------------------------------


def one_row(graph: SourceGraph, batch_axes: Mapping[str, int]) -> tuple[SourceGraph, int]:
    """A graph for one request from one that was exported for a fixed number of them.

    batch_axes: the axis that counts requests, of each port that has one. The one row is repeated before the nodes that
    read it, and the first row of each result is taken: rows do not see each other. Returns the graph as it is, and 1,
    where the axis is open or 1.
    """
    ports = graph.ports
    frozen = {
        name: int(port.dims[batch_axes[name]])
        for name, port in {**ports.inputs, **ports.outputs}.items()
        if name in batch_axes and isinstance(port.dims[batch_axes[name]], int) and port.dims[batch_axes[name]] != 1
    }
    rows = set(frozen.values())
    if not rows:
        return graph, 1
    if len(rows) > 1 or 0 in rows:
        raise graph.error(f"its ports are frozen at different numbers of requests: {frozen}")
    count = rows.pop()
    model = onnx.ModelProto.FromString(graph.model.SerializeToString())
    _rename(model.graph, {name: f"{name}.rows" for name in frozen})
    before, after = [], []
    for value in model.graph.input:
        if value.name in frozen:
            value.type.tensor_type.shape.dim[batch_axes[value.name]].dim_value = 1
            copies = [value.name] * count
            before.append(onnx.helper.make_node("Concat", copies, [f"{value.name}.rows"], axis=batch_axes[value.name]))
    for value in model.graph.output:
        if (name := value.name.removesuffix(".rows")) in frozen:
            axis = batch_axes[name]
            value.name = name
            value.type.tensor_type.shape.dim[axis].dim_value = 1
            bounds = {f"{name}.from": 0, f"{name}.to": 1, f"{name}.axis": axis}
            model.graph.initializer.extend(
                onnx.helper.make_tensor(key, onnx.TensorProto.INT64, [1], [number]) for key, number in bounds.items()
            )
            after.append(onnx.helper.make_node("Slice", [f"{name}.rows", *bounds], [name]))
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    return replace(graph, model=model), count
