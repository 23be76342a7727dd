# SPDX-License-Identifier: Apache-2.0
"""Adapters at run time: the ports that they feed, whichever of them a request has chosen (spec/manifest.md, adapters).

All adapters share the graphs as they are loaded. A request's graph is one that feeds the chosen tensors by itself, so
that nothing else in the runner knows of adapters; where a bundle has none, it is the engine's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from genai_bundle.bundle import Bundle
from genai_bundle.errors import UsageError
from genai_bundle.ports import Port

from .backends.base import Array, Graph, Tensor
from .values import DTYPES

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Adapters:
    """What to feed: `idle` {graph: {port: zeros}}, and `named` {adapter: {graph: {port: tensor}}}, zeros included."""

    idle: Mapping[str, Feeds] = field(default_factory=dict)
    named: Mapping[str, Mapping[str, Feeds]] = field(default_factory=dict)

    def check(self, name: object) -> str | None:
        """An adapter's name as a request gives it. Raises UsageError where the bundle has none of that name."""
        if name is None or (isinstance(name, str) and name in self.named):
            return name
        known = ", ".join(self.named)
        hint = f"It has {known}" if known else "It has none: build it with --adapter NAME=FOLDER"
        raise UsageError(f"the bundle has no adapter {name!r}", hint=hint)

    def apply(self, adapter: str | None, name: str, graph: Graph) -> Graph:
        """The graph called `name`, a fork of its own, with the adapter's tensors (None: with zeros)."""
        feeds = (self.idle if adapter is None else self.named[adapter]).get(name)
        return Adapted(graph.fork(), feeds) if feeds else graph.fork()


@dataclass(frozen=True)
class Adapted:
    """A graph some of whose ports are fed already."""

    graph: Graph
    feeds: Feeds

    def run(
        self,
        feeds: Mapping[str, Tensor],
        want: Collection[str],
        *,
        keep: Collection[str] = (),
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Tensor]:
        return self.graph.run({**self.feeds, **feeds}, want, keep=keep, into=into)

    def array(self, tensor: Tensor) -> Array:
        return self.graph.array(tensor)

    def fork(self) -> Graph:
        return Adapted(self.graph.fork(), self.feeds)


def read_adapters(bundle: Bundle) -> Adapters:
    """The adapters of a bundle that has been checked. Tensors stay in the bundle's mapping until they are used."""
    declared = bundle.manifest.adapters
    tensors = {
        name: {graph: _tensors(bundle, file) for graph, file in adapter.graphs.items()}
        for name, adapter in declared.items()
    }
    idle: dict[str, dict[str, Array]] = {}
    for graph, entry in bundle.manifest.graphs.items():
        fed = {port for found in tensors.values() for port in found.get(graph, {})}
        ports = bundle.ports(entry.file).inputs
        if fed:
            idle[graph] = {port: _zeros(ports[port]) for port in ports if port in fed}
    named = {
        name: {graph: {**zeros, **found.get(graph, {})} for graph, zeros in idle.items()}
        for name, found in tensors.items()
    }
    return Adapters(idle, named)


def _zeros(port: Port) -> Array:
    return np.zeros([dim if isinstance(dim, int) else 1 for dim in port.dims], DTYPES[port.dtype])


def _tensors(bundle: Bundle, file: str) -> dict[str, Array]:
    """The tensors of an adapter's member, those of a shard as views of the mapping."""
    ports, found = bundle.ports(file).outputs, dict[str, Array]()
    for tensor in bundle.graph(file).graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            found[tensor.name] = onnx.numpy_helper.to_array(tensor)
            continue
        place = {item.key: item.value for item in tensor.external_data}
        start = int(place["offset"])
        data = bundle.view(place["location"])[start : start + int(place["length"])]
        found[tensor.name] = np.frombuffer(data, DTYPES[ports[tensor.name].dtype]).reshape(tuple(tensor.dims))
    return found
