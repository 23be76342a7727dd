# SPDX-License-Identifier: Apache-2.0
"""Whether saved prefixes make sense (rules P36 to P38), and whether their arrays fit the graphs (rule G29)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .errors import GraphError
from .flow import fail, nearest, states_of
from .names import at
from .ports import Port, Ports, match_ports
from .prefixes import PORTABLE, array_size, base_id
from .records import Manifest, Prefix, State, StoredArray

CUT = ("append", "shared", "scatter")
"""Updates of states that hold one position a token, each of which follows from the tokens until then."""


def check_prefixes(manifest: Manifest) -> None:
    """Check what can be known without reading a member. Raises GrammarError."""
    own = base_id(manifest) if manifest.prefixes else ""
    for name, prefix in manifest.prefixes.items():
        where = at("prefixes", name)
        if prefix.computed["bundle"] != own:
            message = f"its states were computed from {prefix.computed['bundle']}, without its prefixes this is {own}"
            fail("P36", message, f"{where}.computed.bundle", "Compute it again: genai-bundle prefill")
        _check_names(manifest, prefix, where)
        for place, array in arrays(prefix, where):
            entry = manifest.files.get(array.file)
            if entry is not None and array.offset + array_size(array) > entry.size:  # P24 tells of one not listed
                message = f"bytes {array.offset} to {array.offset + array_size(array)} reach past the {entry.size}"
                fail("P38", f"{message} of {array.file}", place)


def check_arrays(manifest: Manifest, ports: Mapping[str, Ports]) -> None:
    """Check the arrays against the files of the graphs that computed them, by path. Raises GraphError (G29)."""
    for name, prefix in manifest.prefixes.items():
        for state, given in prefix.states.items():
            graph = manifest.state[state].graph
            file, index = _file(manifest, prefix, graph)
            spec = states_of(manifest, graph, index)[state]
            where = at(f"{at('prefixes', name)}.states", state)
            _check_state(spec, given, ports[file], len(prefix.ids), where)


def arrays(prefix: Prefix, where: str) -> Iterator[tuple[str, StoredArray]]:
    """Each array, with its place in the document."""
    for state, given in prefix.states.items():
        for port, array in given.items():
            yield at(at(f"{where}.states", state), port), array


def _check_names(manifest: Manifest, prefix: Prefix, where: str) -> None:
    if prefix.adapter is not None and prefix.adapter not in manifest.adapters:
        hint = nearest(prefix.adapter, manifest.adapters)
        fail("P37", f"no adapter named {prefix.adapter!r}", f"{where}.adapter", hint)
    placed = prefix.computed["graphs"]
    for graph in sorted(placed.keys() ^ manifest.graphs.keys()):
        message = f"no graph named {graph!r}" if graph in placed else f"how {graph!r} was computed is missing"
        fail("P37", message, f"{where}.computed.graphs")
    for graph, place in placed.items():
        known = [PORTABLE, *(variant.name for variant in manifest.graphs[graph].variants)]
        if place["variant"] not in known:
            hint = nearest(place["variant"], known)
            fail("P37", f"{graph!r} has no variant {place['variant']!r}", f"{where}.computed.graphs.{graph}", hint)
    for state in prefix.states:
        declared = manifest.state.get(state)
        if declared is None:
            hint = nearest(state, manifest.state)
            fail("P37", f"no state named {state!r}", at(f"{where}.states", state), hint)
        seen = states_of(manifest, declared.graph, _file(manifest, prefix, declared.graph)[1])[state]
        if seen.update not in CUT:
            message = f"a state that is updated by {seen.update!r} does not hold one position for each id"
            fail("P37", message, at(f"{where}.states", state))


def _file(manifest: Manifest, prefix: Prefix, graph: str) -> tuple[str, int | None]:
    """The file of a graph that the states were computed with, and the index of its variant."""
    entry, wanted = manifest.graphs[graph], prefix.computed["graphs"][graph]["variant"]
    found = [index for index, variant in enumerate(entry.variants) if variant.name == wanted]
    return (entry.variants[found[0]].file, found[0]) if found else (entry.file, None)


def _check_state(state: State, given: Mapping[str, StoredArray], ports: Ports, count: int, where: str) -> None:
    pairs = match_ports(state.ports, ports)
    for port in sorted(pairs.keys() ^ given.keys()):
        message = f"no array for {port!r}" if port in pairs else f"the state has no port {port!r}"
        raise GraphError(message, where=where, rule="G29")
    for port, array in given.items():
        found, wanted = (array.type, array.dims), (ports.inputs[port].dtype, _dims(ports.inputs[port], state, count))
        if found != wanted:
            texts = [f"{kind}[{','.join(map(str, dims))}]" for kind, dims in (found, wanted)]
            raise GraphError(f"{texts[0]}, where {count} ids leave {texts[1]}", where=at(where, port), rule="G29")


def _dims(port: Port, state: State, count: int) -> tuple[int, ...]:
    """The form of one request's state at the port: 1 for each open dim, and one position an id on the state's axis."""
    dims = [dim if isinstance(dim, int) else 1 for dim in port.dims]
    dims[state.axis] = count
    return tuple(dims)
