# SPDX-License-Identifier: Apache-2.0
"""A plain folder: graphs that any ONNX engine loads, text files under their usual names, a README that runs them."""

from __future__ import annotations

import json
from typing import Any

from genai_bundle.bundle import Bundle
from genai_bundle.errors import UsageError
from genai_bundle.exports import Plan, as_json, common_losses, papers
from genai_bundle.exports.adapters import fix_adapter, other_adapters
from genai_bundle.exports.generator import chosen, file_of, generator, state_of
from genai_bundle.exports.readme import readme
from genai_bundle.exports.text import generation_config, text_files
from genai_bundle.exports.weights import Weights
from genai_bundle.ports import Ports, match_ports
from genai_bundle.sanitize import ports_of

TARGET = "folder"
TITLE = "a plain folder of ONNX graphs"

DATA = "model.onnx.data"
PIPELINE = "pipeline.json"

SAID = ("name", "version", "task", "description", "license", "authors", "source", "inputs", "outputs", "steps")
"""What pipeline.json takes over from the manifest as it stands."""

STATED = ("graph", "update", "axis", "tokens", "capacity", "window", "scope", "of")


def plan(bundle: Bundle, variant: str, adapter: str | None = None) -> Plan:
    """The folder of any bundle. `auto` is the portable form, which is for every engine."""
    manifest = bundle.manifest
    form = chosen(manifest, variant)
    weights = Weights(bundle, DATA)
    members = {name: file_of(manifest, name, form) for name in manifest.graphs}
    models = {
        f"{name}.onnx": weights.take(fix_adapter(bundle, name, bundle.graph(member), adapter))
        for name, member in members.items()
    }
    ports = {name: ports_of(models[f"{name}.onnx"]) for name in members}
    try:
        found = generator(bundle, form)
    except UsageError:
        found = None  # the README then says the steps and runs nothing
    pipeline = _pipeline(bundle, form)
    lost = [*other_adapters(manifest, adapter), *common_losses(manifest, form)]
    files = {
        "README.md": readme(bundle, form, found, ports).encode(),
        PIPELINE: as_json(pipeline),
        **text_files(bundle),
        **({"generation_config.json": as_json(generation_config(bundle))} if manifest.text else {}),
    }
    return Plan(form, {**files, **papers(bundle), **weights.files()}, models, lost)


def _pipeline(bundle: Bundle, form: str) -> dict[str, Any]:
    """The manifest's account of the pipeline, with each state as this form has it and its ports spelt out."""
    manifest = bundle.manifest
    document: dict[str, Any] = json.loads(manifest.raw)
    graphs = {name: {"file": f"{name}.onnx", "place": entry.place} for name, entry in manifest.graphs.items()}
    states: dict[str, Any] = {}
    for name in manifest.state:
        state = state_of(manifest, name, form)
        entry = {field: value for field in STATED if (value := getattr(state, field)) is not None}
        states[name] = {**entry, "pairs": _pairs(bundle, form, name)}
    said = {key: document[key] for key in SAID if key in document}
    return {**said, "graphs": graphs, "state": states, "generation": document.get("generation", {})}


def _pairs(bundle: Bundle, form: str, name: str) -> dict[str, str]:
    """{past port: present port}; of a state that is read, {this graph's input: the owner's past port}."""
    manifest = bundle.manifest
    state = state_of(manifest, name, form)
    own = bundle.ports(file_of(manifest, state.graph, form))
    if state.of is None:
        return match_ports(state.ports, own)
    owner = bundle.ports(file_of(manifest, manifest.state[state.of].graph, form))
    return match_ports(state.ports, Ports(own.inputs, owner.inputs))
