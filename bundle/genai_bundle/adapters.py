# SPDX-License-Identifier: Apache-2.0
"""Adapters: what their members hold (rule G27), and whether it fits the graphs that are given it (rule G28).

An adapter's member is an ONNX model that computes nothing: its outputs are initializers, under the names of the ports
that they are for. So it passes the rules of every graph, and its tensors lie in shards as weights do.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from .errors import GraphError
from .ports import Port, Ports
from .sanitize import ports_of

VALUES = {"f32": 4, "f16": 2, "i64": 8, "i32": 4, "u8": 1, "bool": 1}
"""The element types of a pipeline's values, and the bytes of an element."""


def values_of(model: onnx.ModelProto, *, file: str) -> Ports:
    """The tensors of an adapter's model, as its outputs. The model has passed `sanitize`. Raises GraphError (G27)."""
    graph = model.graph
    if graph.input or graph.node or graph.sparse_initializer or model.functions:
        raise _no_adapter("inputs, nodes, functions or sparse tensors, which an adapter's model has not", file)
    ports = ports_of(model).outputs
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    if ports.keys() != tensors.keys():
        raise _no_adapter(
            f"{sorted(ports.keys() ^ tensors.keys())[0]!r} is not both an initializer and an output", file
        )
    for value in graph.output:
        tensor, port, kind = tensors[value.name], ports[value.name], value.type.tensor_type
        if kind.elem_type != tensor.data_type or port.dims != tuple(tensor.dims):
            raise _no_adapter(f"the output {value.name!r} is declared otherwise than its initializer", file)
        if port.dtype not in VALUES:
            raise _no_adapter(f"{value.name!r} is {port.dtype}, and one of {', '.join(VALUES)} was expected", file)
        if tensor.data_location == TensorProto.DEFAULT and not _is_whole(tensor):
            raise _no_adapter(f"the data of {value.name!r} does not fill its dims", file)
    return Ports({}, ports)


def adapter_ports(values: Mapping[str, Ports]) -> frozenset[str]:
    """The input ports of a graph that adapters feed: those that any of its adapters has a tensor for."""
    return frozenset(name for ports in values.values() for name in ports.outputs)


def check_fit(values: Ports, fed: frozenset[str], graph: Ports, *, file: str, where: str) -> None:
    """Check an adapter's tensors against a file of the graph. Raises GraphError (G28).

    fed: the ports that adapters feed, those among them that this one has nothing for. file: the graph's, for messages.
    """
    lengths: dict[str, tuple[int, str]] = {}
    for name in sorted(fed):
        port, value = graph.inputs.get(name), values.outputs.get(name)
        if port is None:
            message = f"{file} has no input {name!r}, for which an adapter has a tensor"
            raise GraphError(message, where=where, rule="G28")
        given = tuple(dim if isinstance(dim, int) else 1 for dim in port.dims) if value is None else value.dims
        if value is not None and (value.dtype != port.dtype or not _agrees(value, port)):
            found, wanted = (f"{one.dtype}[{', '.join(map(str, one.dims))}]" for one in (value, port))
            raise GraphError(f"{name!r} is {found}, and the input of {file} {wanted}", where=where, rule="G28")
        for symbol, length in zip(port.dims, given, strict=True):
            if isinstance(symbol, str) and symbol and lengths.setdefault(symbol, (int(length), name))[0] != length:
                message = (
                    f"the dim {symbol!r} is {length} in {name!r} and {lengths[symbol][0]} in {lengths[symbol][1]!r}"
                )
                raise GraphError(message, where=where, rule="G28")


def _agrees(value: Port, port: Port) -> bool:
    """Equal in rank, and in length wherever the port's is fixed."""
    return len(value.dims) == len(port.dims) and all(
        wanted == found for wanted, found in zip(port.dims, value.dims, strict=True) if isinstance(wanted, int)
    )


def _is_whole(tensor: TensorProto) -> bool:
    """Whether a tensor inside the model has the data that its dims need."""
    if min(tensor.dims, default=0) < 0:
        return False
    try:
        return onnx.numpy_helper.to_array(tensor).shape == tuple(tensor.dims)
    except (ValueError, TypeError):
        return False


def _no_adapter(message: str, file: str) -> GraphError:
    hint = "An adapter's model holds initializers only, each of which is an output"
    return GraphError(message, where=file, rule="G27", hint=hint)
