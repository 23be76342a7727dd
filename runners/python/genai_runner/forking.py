# SPDX-License-Identifier: Apache-2.0
"""A request twice: the copy goes on from the same states without the original's noticing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .backends.base import Array
from .state import DISCIPLINES, Buffer, Group, Once, Read, Ring

if TYPE_CHECKING:
    from .interpreter import Request


def forked(request: Request) -> Request:
    """A copy of `request` with graphs, states, draws and a grammar of its own. What both emit goes to one place."""
    program, arguments, twin = request.program, request.arguments, copy.copy(request)
    apply, adapter = program.adapters.apply, arguments.adapter
    twin._graphs = {name: apply(adapter, name, one.graph) for name, one in program.graphs.items()}
    twin.env = replace(request.env, draws=dict(request.env.draws), processors=arguments.bound(program.text))
    twin.states = {}
    for loaded in program.graphs.values():
        for name, spec in loaded.states.items():
            twin.states[name] = DISCIPLINES[spec.update](name, spec, loaded.ports, twin._graphs[loaded.name])
    for name, group in twin.states.items():
        if isinstance(group, Read):
            group.owner = twin.states[group.spec.of or ""]
        else:
            _copy(request.states[name], group)
    return twin


def _copy(source: Group, target: Group) -> None:
    """Let the empty `target` hold what `source` does."""
    if isinstance(source, Once) and source.keep:
        return  # nothing came yet
    held = {port: np.array(source._graph.array(tensor)) for port, tensor in source.feeds(0).items()}
    if isinstance(target, Buffer):
        target.feeds(source.length)  # so that there is room
        _fill(target, held)
        target.commit({}, source.length)
    else:
        target.commit({target.pairs[port]: array for port, array in held.items()}, source.length)
    if isinstance(source, Ring) and isinstance(target, Ring):
        target._slots = source._slots.copy()


def _fill(target: Buffer, held: dict[str, Array]) -> None:
    arrays = target.into()
    for port, array in held.items():
        into = arrays[target.pairs[port]]
        size = min(array.shape[target.spec.axis], into.shape[target.spec.axis])
        index = (slice(None),) * target.spec.axis + (slice(0, size),)
        into[index] = array[index]
