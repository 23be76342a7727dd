# SPDX-License-Identifier: Apache-2.0
"""Whether a manifest fits the ports of its graphs (rules G20 on). Called by way of `check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from .adapters import adapter_ports, check_fit
from .errors import GraphError
from .flow import Flow, nearest, runs, states_of
from .names import at
from .ports import Port, Ports, match_ports
from .prefix_check import check_arrays
from .records import Manifest, Run, State


@dataclass(frozen=True, slots=True)
class GraphFile:
    """One file of a graph: the default (variant None) or a variant's, its ports, and its states as it sees them."""

    graph: str
    variant: int | None
    path: str
    ports: Ports
    states: Mapping[str, State]

    @property
    def where(self) -> str:
        """Its place in the document."""
        variant = "" if self.variant is None else f".variants[{self.variant}]"
        return f"graphs.{self.graph}{variant}.file"


def check_graphs(manifest: Manifest, ports: Mapping[str, Ports]) -> None:
    """Check every port that the manifest names against the graphs.

    manifest: has passed `check_manifest`. ports: the ports of every graph file, by its path.
    Raises GraphError (rules G20 on), or GrammarError (P6) where a value's kind, now known, fits no port.
    """
    graphs = {name: _files(manifest, name, ports) for name in manifest.graphs}
    for name, files in graphs.items():
        bound = [_bind_states(manifest, file, graphs) for file in files]
        _bind_adapters(manifest, name, files, ports, bound)
        for step in runs(manifest.steps):
            if step.target == name:
                _check_names(step, files)
                for file, states in zip(files, bound, strict=True):
                    _check_bindings(step, file, states)
    Flow(manifest, {name: files[0].ports for name, files in graphs.items()}).walk()
    check_arrays(manifest, ports)


def _files(manifest: Manifest, name: str, ports: Mapping[str, Ports]) -> list[GraphFile]:
    graph = manifest.graphs[name]
    paths = [(None, graph.file), *((index, variant.file) for index, variant in enumerate(graph.variants))]
    return [GraphFile(name, index, path, ports[path], states_of(manifest, name, index)) for index, path in paths]


def _bind_states(manifest: Manifest, file: GraphFile, graphs: Mapping[str, Sequence[GraphFile]]) -> dict[str, str]:
    """The input ports that states feed: {port: "the state …"}."""
    bound: dict[str, str] = {}
    for name, state in file.states.items():
        offered = file.ports
        if state.of is not None:
            offered = Ports(file.ports.inputs, _owner(manifest, file, state.of, graphs).ports.inputs)
        for past, present in state.ports.items():
            pairs = match_ports({past: present}, offered)
            if not pairs:
                message = f"the ports {past!r} and {present!r} of the state {name!r} match nothing in {file.path}"
                _fail("G23", message, file.where)
            for port, partner in pairs.items():
                feeder = f"the state {name!r}"
                if bound.setdefault(port, feeder) != feeder:
                    _fail("G22", f"{bound[port]} and {feeder} both feed {port!r}", file.where)
                _check_pair(state, file.ports.inputs[port], offered.outputs[partner], file)
        if state.tokens is not None:
            counted = file.ports.inputs.get(state.tokens)
            if counted is None or len(counted.dims) < 2:
                message = f"{file.path} has no input {state.tokens!r} with an axis 1, by which {name!r} counts tokens"
                _fail("G25", message, file.where)
    return bound


def _bind_adapters(
    manifest: Manifest, graph: str, files: Sequence[GraphFile], ports: Mapping[str, Ports], bound: list[dict[str, str]]
) -> None:
    """Check the adapters of a graph against all its files, and add the ports that they feed to `bound`."""
    values = {name: ports[one.graphs[graph]] for name, one in manifest.adapters.items() if graph in one.graphs}
    fed = adapter_ports(values)
    for file, feeders in zip(files, bound, strict=True):
        for name, found in values.items():
            where = at(f"{at('adapters', name)}.graphs", graph)
            check_fit(found, fed, file.ports, file=file.path, where=where)
        for port in sorted(fed):
            if port in feeders:
                _fail("G22", f"{feeders[port]} and an adapter both feed {port!r}", file.where)
            feeders[port] = "an adapter"


def _owner(manifest: Manifest, file: GraphFile, state: str, graphs: Mapping[str, Sequence[GraphFile]]) -> GraphFile:
    """The file whose state is read: its variant of the same name, or its default file."""
    graph = manifest.state[state].graph
    if file.variant is not None:
        wanted = manifest.graphs[file.graph].variants[file.variant].name
        for index, variant in enumerate(manifest.graphs[graph].variants):
            if variant.name == wanted:
                return graphs[graph][index + 1]
    return graphs[graph][0]


def _check_pair(state: State, past: Port, present: Port, file: GraphFile) -> None:
    ranks = {len(port.dims) for port in (past, present) if port.dims}  # a graph may leave out an output's shape
    if past.dtype != present.dtype or len(ranks) > 1:
        shapes = f"{past.dtype} of rank {len(past.dims)} and {present.dtype} of rank {len(present.dims)}"
        _fail("G24", f"{past.name!r} and {present.name!r} are {shapes}, not the same", file.where)
    if state.update not in ("replace", "read") and state.axis >= len(past.dims):
        _fail("G24", f"{past.name!r} has {len(past.dims)} axes, so none with the number {state.axis}", file.where)


def _check_names(step: Run, files: Sequence[GraphFile]) -> None:
    """Each port exists, and is a text everywhere or nowhere."""
    inputs = {port for file in files for port in file.ports.inputs}
    for side, ports in (("in", step.inputs), ("with", step.literals)):
        for port in ports:
            if port not in inputs:
                message = f"no file of {step.target!r} has an input {port!r}"
                _fail("G20", message, f"{step.where}.{side}", nearest(port, inputs))
    for port in step.outputs:
        for file in files:
            if port not in file.ports.outputs:
                _fail(
                    "G20", f"{file.path} has no output {port!r}", f"{step.where}.out", nearest(port, file.ports.outputs)
                )
    for port in (*step.inputs, *step.literals, *step.outputs):
        found = [
            file.ports.outputs.get(port) if port in step.outputs else file.ports.inputs.get(port) for file in files
        ]
        if len({one.dtype == "text" for one in found if one is not None}) > 1:
            _fail("G26", f"the port {port!r} is a text in one file and a tensor in another", step.where)


def _check_bindings(step: Run, file: GraphFile, bound: Mapping[str, str]) -> None:
    """Every input of the file has one value in this run."""
    for name, port in file.ports.inputs.items():
        given = name in step.inputs or name in step.literals
        if given and name in bound:
            _fail("G22", f"{bound[name]} feeds {name!r} already", step.where)
        if not given and name not in bound and not port.optional:
            _fail("G21", f"nothing feeds the input {name!r} of {file.path}", step.where)


def _fail(rule: str, message: str, where: str, hint: str | None = None) -> NoReturn:
    raise GraphError(message, where=where, rule=rule, hint=hint)
