# SPDX-License-Identifier: Apache-2.0
"""Reads a graph and refuses everything that an engine must not see.

Engines trust a model: one takes an address from an external-data location and reads there, others read past the end of
a file, or differ on which of two equal keys counts. So every graph passes here first, and only the protobuf classes
of `onnx` touch it (`onnx.checker` accepts offsets past the end). Each rule names the attack or accident it stops.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from math import prod

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from .errors import GraphError
from .layout import is_weights
from .ports import Port, Ports

STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Operator domains that every graph may use."""

CONTRIB = frozenset({"com.microsoft"})
"""Domains that variants may use, and default graphs whose manifest requires `domain:NAME`."""

MAX_BYTES = (1 << 31) - 1
MIN_IR, MAX_IR = 3, 13
MAX_OPSET = 26
ALIGNMENT = 64

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_LOCATION_KEYS = ("location", "offset", "length")

# Bits of one element in external data; types of less than a byte are packed.
_T = TensorProto
_BITS: dict[int, int] = {
    **dict.fromkeys((_T.FLOAT, _T.INT32, _T.UINT32), 32),
    **dict.fromkeys((_T.FLOAT16, _T.BFLOAT16, _T.INT16, _T.UINT16), 16),
    **dict.fromkeys((_T.DOUBLE, _T.INT64, _T.UINT64, _T.COMPLEX64), 64),
    **dict.fromkeys((_T.INT8, _T.UINT8, _T.BOOL), 8),
    **dict.fromkeys((_T.FLOAT8E4M3FN, _T.FLOAT8E4M3FNUZ, _T.FLOAT8E5M2, _T.FLOAT8E5M2FNUZ, _T.FLOAT8E8M0), 8),
    **dict.fromkeys((_T.INT4, _T.UINT4, _T.FLOAT4E2M1), 4),
    **dict.fromkeys((_T.INT2, _T.UINT2), 2),
    _T.COMPLEX128: 128,
}

_DTYPES: dict[int, str] = {
    **dict(zip((_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE), ("f32", "f16", "bf16", "f64"), strict=True)),
    **dict(zip((_T.INT64, _T.INT32, _T.INT16, _T.INT8), ("i64", "i32", "i16", "i8"), strict=True)),
    **dict(zip((_T.UINT64, _T.UINT32, _T.UINT16, _T.UINT8), ("u64", "u32", "u16", "u8"), strict=True)),
    _T.BOOL: "bool",
    _T.STRING: "text",
}


def sanitize(
    model_bytes: bytes | memoryview,
    *,
    file: str,
    members: Mapping[str, int],
    domains: Collection[str] = STANDARD | CONTRIB,
) -> onnx.ModelProto:
    """Parses a graph, without its weights, and checks rules G1 to G19.

    file: the graph's member path, for messages. members: {path: size in bytes} of the bundle. domains: the operator
    domains that this graph may use; a bundle's default graphs get `STANDARD` and what the manifest requires.

    Raises GraphError.
    """
    return _Sanitizer(file, members, domains).run(model_bytes)


def ports_of(model: onnx.ModelProto) -> Ports:
    """The input and output ports of a model, in the graph's order."""
    defaults = {tensor.name for tensor in model.graph.initializer}
    return Ports(
        {value.name: _port(value, value.name in defaults) for value in model.graph.input},
        {value.name: _port(value, False) for value in model.graph.output},
    )


def _port(value: onnx.ValueInfoProto, optional: bool) -> Port:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return Port(value.name, (kind or "undefined").removesuffix("_type"), (), optional)
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type) or _type_name(tensor.elem_type).lower()
    dims = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)
    return Port(value.name, dtype, tuple(dims), optional)


def _type_name(data_type: int) -> str:
    known = TensorProto.DataType.items()
    return next((name for name, number in known if number == data_type), f"type {data_type}")


class _Sanitizer:
    """One walk over one model."""

    def __init__(self, file: str, members: Mapping[str, int], domains: Collection[str]) -> None:
        self.file = file
        self.members = members
        self.domains = domains
        self.functions: dict[tuple[str, str], onnx.FunctionProto] = {}

    def run(self, data: bytes | memoryview) -> onnx.ModelProto:
        model = self._parse(data)
        imports = self._check_versions(model.ir_version, model.opset_import)
        self._check_texts(text for function in model.functions for text in (function.domain, function.name))
        for function in model.functions:
            key = (_domain(function.domain), function.name)
            if key in self.functions:
                raise self._refuse("G18", f"two functions are named {function.name!r}")
            if key[0] in STANDARD | CONTRIB:
                raise self._refuse("G5", f"the function {function.name!r} is in the operators' domain {key[0]!r}")
            self.functions[key] = function
        for function in model.functions:
            self._check_function(function)
        self._check_calls()
        if model.training_info:
            raise self._refuse("G19", "the model has training_info", "Export it for inference")
        if any(entry.key == "ort_config" for entry in model.metadata_props):
            raise self._refuse("G17", "the metadata entry `ort_config` sets options of an engine", "Remove it")
        self._check_graph(model.graph, imports, top=True)
        return model

    def _refuse(self, rule: str, message: str, hint: str | None = None, where: str = "") -> GraphError:
        place = f"{self.file}: {where}" if where else self.file
        return GraphError(
            message, where=place, rule=rule, hint=hint or "Export the graph again, with a current exporter"
        )

    def _parse(self, data: bytes | memoryview) -> onnx.ModelProto:
        if len(data) > MAX_BYTES:
            raise self._refuse("G1", f"{len(data)} bytes are more than protobuf reads", "Move tensors into weights/")
        model = onnx.ModelProto()
        try:
            model.ParseFromString(bytes(data))
        except (DecodeError, RecursionError) as error:
            raise self._refuse("G1", f"not an ONNX model: {error}") from error
        if not model.HasField("graph"):
            raise self._refuse("G1", "the model has no graph")
        return model

    def _check_versions(self, ir: int | None, opsets: Sequence[onnx.OperatorSetIdProto]) -> frozenset[str]:
        """Checks IR and operator set versions; returns the imported domains, `""` for ai.onnx."""
        if ir is not None and not MIN_IR <= ir <= MAX_IR:
            raise self._refuse("G2", f"IR version {ir} is outside of {MIN_IR} to {MAX_IR}")
        imports: set[str] = set()
        self._check_texts(opset.domain for opset in opsets)
        for opset in opsets:
            domain = _domain(opset.domain)
            if domain in imports:
                raise self._refuse("G3", f"the operator set {opset.domain!r} is imported twice")
            if domain == "" and not 1 <= opset.version <= MAX_OPSET:
                raise self._refuse("G3", f"operator set {opset.version} of ai.onnx is outside of 1 to {MAX_OPSET}")
            imports.add(domain)
        return frozenset(imports)

    def _check_function(self, function: onnx.FunctionProto) -> None:
        imports = self._check_versions(None, function.opset_import)
        where = f"function {function.name!r}"
        self._check_unique([*function.input, *_results(function.node)], where)
        self._check_unique(function.output, where)
        for node in function.node:
            self._check_node(node, imports)

    def _check_calls(self) -> None:
        """No function may reach itself: engines inline calls."""
        own = self.functions
        calls = {key: {called for called in _calls(body.node) if called in own} for key, body in own.items()}
        try:
            TopologicalSorter(calls).prepare()
        except CycleError as error:
            raise self._refuse("G8", f"the function {error.args[1][0][1]!r} calls itself") from error

    def _check_graph(self, graph: onnx.GraphProto, imports: frozenset[str], *, top: bool) -> None:
        where = "" if top else f"subgraph {graph.name!r}"
        sparse = [tensor.values.name for tensor in graph.sparse_initializer]
        initializers = [tensor.name for tensor in graph.initializer] + sparse
        inputs = [value.name for value in graph.input]
        self._check_unique(initializers, where)
        self._check_unique(inputs, where)
        self._check_unique([value.name for value in graph.output], where)
        self._check_unique([*{*inputs, *initializers}, *_results(graph.node)], where)
        for value in (*graph.input, *graph.output):
            self._check_texts(dim.dim_param for dim in value.type.tensor_type.shape.dim)
        for tensor in graph.initializer:
            self._check_tensor(tensor, external=top)
        for item in graph.sparse_initializer:
            self._check_sparse(item)
        for node in graph.node:
            self._check_node(node, imports)

    def _check_texts(self, texts: Iterable[str]) -> None:
        """Protobuf hands out bytes, against its own types, for a text that is not UTF-8."""
        for text in texts:
            if not isinstance(text, str):
                raise self._refuse("G1", f"the text {text!r} is not UTF-8")

    def _check_unique(self, names: Collection[str], where: str) -> None:
        self._check_texts(names)
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise self._refuse("G18", f"the name {twice[0]!r} is given twice", where=where)

    def _check_node(self, node: onnx.NodeProto, imports: frozenset[str]) -> None:
        where = f"node {(node.name or node.op_type)!r}"
        self._check_texts([node.op_type, node.domain, *node.input])
        domain = _domain(node.domain)
        if node.op_type == "EPContext":
            raise self._refuse("G17", "holds a compiled blob of one engine, or the path of one", where=where)
        if (domain, node.op_type) not in self.functions:
            if domain not in imports:
                raise self._refuse("G4", f"no operator set is imported for the domain {node.domain!r}", where=where)
            if domain not in self.domains and domain in CONTRIB:
                hint = f'Add "domain:{domain}" to `requires`, or use the node in a variant only'
                raise self._refuse("G6", f"a default graph uses the domain {domain!r}", hint, where)
            if domain not in self.domains:
                raise self._refuse("G5", f"operators of the domain {domain!r} are not allowed", where=where)
        self._check_texts(attribute.name for attribute in node.attribute)
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                self._check_tensor(tensor, external=False)
            for item in (attribute.sparse_tensor, *attribute.sparse_tensors):
                self._check_sparse(item)
            for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                self._check_graph(graph, imports, top=False)

    def _check_sparse(self, item: onnx.SparseTensorProto) -> None:
        for tensor in (item.values, item.indices):
            if _is_external(tensor):
                raise self._refuse("G19", f"the sparse tensor {item.values.name!r} has external data")

    def _check_tensor(self, tensor: onnx.TensorProto, *, external: bool) -> None:
        if not _is_external(tensor):
            return
        where = f"tensor {tensor.name!r}"
        if not external:
            raise self._refuse("G16", "external data outside of the main graph's initializers", where=where)
        location, offset, length = self._read_location(tensor, where)
        if not is_weights(location) or location not in self.members:
            message = f"its data is at {location!r}, which is no member under weights/"
            raise self._refuse("G7", message, where=where)
        if tensor.data_type not in _BITS:
            message = f"external data of {_type_name(tensor.data_type)}, whose elements have no fixed size"
            raise self._refuse("G15", message, where=where)
        if offset + length > self.members[location]:
            message = f"bytes {offset} to {offset + length} reach past the {self.members[location]} of {location}"
            raise self._refuse("G12", message, where=where)
        if offset % ALIGNMENT:
            raise self._refuse("G13", f"its offset {offset} is no multiple of {ALIGNMENT}", where=where)
        size = -(-prod(tensor.dims) * _BITS[tensor.data_type] // 8)
        if min(tensor.dims, default=0) < 0 or length != size:
            message = f"{length} bytes, where {_type_name(tensor.data_type)}{list(tensor.dims)} has {size}"
            raise self._refuse("G14", message, where=where)

    def _read_location(self, tensor: onnx.TensorProto, where: str) -> tuple[str, int, int]:
        """Each of the three keys exactly once, and the data nowhere else."""
        found: dict[str, str] = {}
        self._check_texts(text for entry in tensor.external_data for text in (entry.key, entry.value))
        for entry in tensor.external_data:
            if entry.key not in _LOCATION_KEYS:
                raise self._refuse("G9", f"unknown key {entry.key!r} of external data", where=where)
            if entry.key in found:
                raise self._refuse("G10", f"the key {entry.key!r} of external data is given twice", where=where)
            found[entry.key] = entry.value
        missing = [key for key in _LOCATION_KEYS if key not in found]
        if missing or tensor.data_location != TensorProto.EXTERNAL or _has_inline(tensor):
            message = f"without {missing[0]}" if missing else "and data inside the graph as well"
            raise self._refuse("G11", f"external data {message}", where=where)
        for key in ("offset", "length"):
            if not _NUMBER.fullmatch(found[key]):
                raise self._refuse("G11", f"the {key} {found[key]!r} is no plain decimal number", where=where)
        return found["location"], int(found["offset"]), int(found["length"])


def _domain(name: str) -> str:
    """ONNX spells its own domain in two ways."""
    return "" if name == "ai.onnx" else name


def _is_external(tensor: onnx.TensorProto) -> bool:
    """Says anything about external data: readers differ on whether the flag or the entries count."""
    return tensor.data_location != TensorProto.DEFAULT or bool(tensor.external_data)


def _has_inline(tensor: onnx.TensorProto) -> bool:
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return bool(tensor.raw_data) or bool(tensor.string_data) or any(map(len, fields))


def _results(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """The names that nodes assign; an empty name stands for an output that is left out."""
    return [name for node in nodes for name in node.output if name]


def _calls(nodes: Sequence[onnx.NodeProto]) -> Iterator[tuple[str, str]]:
    """What the nodes and those of their subgraphs run: (domain, operator or function)."""
    for node in nodes:
        yield _domain(node.domain), node.op_type
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _calls(graph.node)
