# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs as members of a bundle: read from files or from their textual form, weights moved into shards.

Graphs stay as they are: neither IR version nor opset is changed, only where the bytes of large initializers lie.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from genai_bundle.builder.shards import INLINE, Packer
from genai_bundle.errors import SourceError
from genai_bundle.sanitize import CONTRIB, STANDARD
from genai_bundle.writer import Shard

HEADER = '<ir_version: 10, opset_import: ["": 23]> '
"""What a textual graph without a header of its own gets."""

Bytes = bytes | memoryview


def adapter_member(name: str, graph: str) -> str:
    """The member of an adapter's tensors for a graph. No graph's member begins like this: a name has no `-`."""
    return f"adapter-{name}.{graph}.onnx"


def parse_text(text: str, where: str) -> onnx.ModelProto:
    """A model from ONNX's textual form: a model, or a graph alone, which gets `HEADER`.

    Raises SourceError with the parser's, the checker's or the shape inference's own words; `where` names the graph.
    """
    whole = text if text.lstrip().startswith("<") else HEADER + text
    try:
        model = onnx.parser.parse_model(whole)
    except onnx.parser.ParseError as error:
        raise SourceError(f"is not ONNX text: {_parse_message(error, whole is not text)}", where=where) from error
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=not domains(model))
        for output, known in zip(model.graph.output, inferred.graph.output, strict=True):
            if not output.type.WhichOneof("value"):
                output.CopyFrom(known)
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SourceError(f"is not a valid graph: {' '.join(lines[:4])}", where=where) from error
    return model


def _parse_message(error: onnx.parser.ParseError, headed: bool) -> str:
    """The parser's message, its column counted without the header that was put before the first line."""
    found = error.args[0] if error.args else str(error)
    message = found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)

    def position(match: re.Match[str]) -> str:
        line, column = int(match[1]), int(match[2])
        return f"line {line}, column {column - len(HEADER) if headed and line == 1 else column}"

    message = re.sub(r"\[ParseError at position \(line: (\d+) column: (\d+)\)\]", position, message)
    return " ".join(message.replace(HEADER, "").split())


def read_file(path: Path, where: str) -> onnx.ModelProto:
    """A model from an .onnx file, its external data left where it is. Raises SourceError."""
    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        hint = "File names are relative to the recipe's folder"
        raise SourceError(f"cannot read {path.name}: {error.strerror}", where=where, hint=hint) from error
    except DecodeError as error:
        raise SourceError(f"{path.name} is not an ONNX model", where=where) from error


def external_files(model: onnx.ModelProto) -> list[str]:
    """The files that hold the model's external data, as it names them."""
    entries = (item for tensor in model.graph.initializer for item in tensor.external_data)
    return sorted({item.value for item in entries if item.key == "location"})


def domains(model: onnx.ModelProto) -> set[str]:
    """The operator domains that the model's nodes use, save ONNX's own and those of its functions."""
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    own = {function.domain for function in model.functions}
    return {node.domain for body in bodies for node in _nodes(body)} - STANDARD - own


def _nodes(body: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes with those of their subgraphs."""
    for node in body:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def pack_graph(
    name: str, files: Mapping[str, tuple[onnx.ModelProto, Path | None, str]]
) -> tuple[dict[str, bytes], dict[str, Shard]]:
    """Move the weights of all files of one graph into the shards that they share; equal tensors are stored once.

    files: {member: (model, the folder of its external data, where the recipe names it)}; the models are changed.
    Returns the graphs' bytes and the shards, by member.
    """
    packer = Packer(name)
    graphs = {member: _pack(model, packer, folder, where) for member, (model, folder, where) in files.items()}
    return graphs, packer.shards()


def _pack(model: onnx.ModelProto, packer: Packer, folder: Path | None, where: str) -> bytes:
    for tensor in model.graph.initializer:
        data = _data(tensor, folder, where)
        if tensor.data_type == onnx.TensorProto.STRING or (len(data) < INLINE and not tensor.external_data):
            continue
        _clear(tensor)
        if len(data) < INLINE:
            tensor.raw_data = bytes(data)
            continue
        place = packer.place(len(data), _reader(data))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", place.member), ("offset", place.offset), ("length", place.length)):
            tensor.external_data.add(key=key, value=str(value))
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def _reader(data: Bytes) -> Callable[[], Bytes]:
    return lambda: data


def _data(tensor: onnx.TensorProto, folder: Path | None, where: str) -> Bytes:
    """The tensor's bytes in ONNX's raw form (little-endian, sub-byte types packed)."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _external(tensor, folder, where)
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if tensor.data_type == onnx.TensorProto.STRING:
        return b""
    try:
        return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
    except (ValueError, TypeError) as error:
        raise SourceError(f"initializer {tensor.name!r} is damaged: {error}", where=where) from error


def _external(tensor: onnx.TensorProto, folder: Path | None, where: str) -> memoryview:
    entry = {item.key: item.value for item in tensor.external_data}
    location = entry.get("location", "")
    name = f"initializer {tensor.name!r}"
    if folder is None:
        raise SourceError(f"{name} has external data, which a graph written as text cannot have", where=where)
    file = folder / location  # which may be a link: in a hub's cache, all files are
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise SourceError(f"{name} has its data at {location!r}, outside the graph's folder", where=where)
    try:
        with file.open("rb") as opened:
            view = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {location}, which has the data of {name}: {error}", where=where) from error
    start = int(entry.get("offset") or 0)
    end = start + int(entry["length"]) if entry.get("length") else len(view)
    if not 0 <= start <= end <= len(view):
        message = f"{name} has its data at {start}..{end} of {location}, which has {len(view)} bytes"
        raise SourceError(message, where=where)
    return view[start:end]


def _clear(tensor: onnx.TensorProto) -> None:
    """Leave name, type and dims only."""
    for kind in ("raw", "external", "float", "int32", "int64", "double", "uint64"):
        tensor.ClearField(f"{kind}_data")
    tensor.ClearField("data_location")


def used(models: Iterable[onnx.ModelProto]) -> list[str]:
    """The features that bundles with these default graphs have to require."""
    return sorted({f"domain:{domain}" for model in models for domain in domains(model) & CONTRIB})
