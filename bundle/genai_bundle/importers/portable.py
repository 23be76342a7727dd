# SPDX-License-Identifier: Apache-2.0
"""Foreign graphs that only one engine runs get a form in portable operators, which becomes the bundle's default graph.

What the folder has stays as it is, as the variant `ORT` over the same weights. The form is proved against the original
before anything is written (`forms`); what cannot be lowered, or differs, stays the default, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from genai_bundle.builder.lowering import lower, portable
from genai_bundle.builder.portable_form import ORT
from genai_bundle.importers.body import Body, Json
from genai_bundle.importers.graphs import SourceGraph


def with_portable(graph: SourceGraph, notes: list[str]) -> SourceGraph:
    """The graph with a portable form beside it, where it needs one and has one."""
    if graph.file is None or portable(graph.model):
        return graph
    source = ir.from_proto(graph.model)
    ir.external_data.set_base_dir(source.graph, graph.file.parent)
    found = lower(source)
    if found.left:
        notes.append(f"{graph.where} runs on ONNX Runtime only: {'; '.join(found.left[:3])}")
        return graph
    notes.append(f"{graph.where} has a portable form: {', '.join(found.changed)}")
    return replace(graph, portable=ir.to_proto(found.model))


def keep_states(graphs: Sequence[SourceGraph], body: Body, entries: Mapping[str, Json]) -> Json:
    """The manifest's `state`: of a portable form it grows; a variant says where the original has one buffer."""
    state = body.state()
    for graph in graphs:
        shared = [cache.name for cache in body.caches if cache.graph == graph.name and cache.update == "shared"]
        if graph.portable is None or not shared:
            continue
        for name in shared:
            state[name]["update"] = "append"
        for variant in entries[graph.name].get("variants", ()):
            if variant["name"] == ORT:
                variant["state"] = {name: {"update": "shared"} for name in shared}
    return state
