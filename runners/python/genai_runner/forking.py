# SPDX-License-Identifier: Apache-2.0
"""A request twice: the copy goes on from the same states without the original's noticing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from . import processors
from .disciplines import DISCIPLINES, Read

if TYPE_CHECKING:
    from .interpreter import Request


def forked(request: Request, *, states: bool = True) -> Request:
    """A copy of `request` with graphs, states, draws and a grammar of its own. What both emit goes to one place.

    states: without them it runs no graph by itself.
    """
    program, arguments, twin = request.program, request.arguments, copy.copy(request)
    twin.env = replace(request.env, draws=dict(request.env.draws), processors=processors.forked(request.env.processors))
    if not states:
        return twin
    apply, adapter = program.adapters.apply, arguments.adapter
    twin._graphs = {name: apply(adapter, name, one.graph) for name, one in program.graphs.items()}
    twin.states, twin._runs = {}, {}
    for loaded in program.graphs.values():
        for name, spec in loaded.states.items():
            twin.states[name] = DISCIPLINES[spec.update](name, spec, loaded.ports, twin._graphs[loaded.name])
    for name, group in twin.states.items():
        if isinstance(group, Read):
            group.owner = twin.states[group.spec.of or ""]
        else:
            group.load(request.states[name].save())
    return twin
