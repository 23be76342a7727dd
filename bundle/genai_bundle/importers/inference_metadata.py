# SPDX-License-Identifier: Apache-2.0
"""Folders with an `inference_metadata.yaml`, as mobius writes them for onnx-genai: decoders of text.

The file says what each port of the graph is for and what becomes of each state, so nothing is guessed from names. A
window that it states is not kept by the graphs that mobius writes: a folder with one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from onnx.inliner import inline_local_functions

from genai_bundle.errors import SourceError
from genai_bundle.importers import Assembled, Progress
from genai_bundle.importers.assembling import Pipeline, assemble_pipeline
from genai_bundle.importers.body import Body, Cache, Stage
from genai_bundle.importers.encoder import UNKNOWN
from genai_bundle.importers.foreign import Section
from genai_bundle.importers.generation_config import read_generation
from genai_bundle.importers.graphs import SourceGraph, read_graph
from genai_bundle.importers.text import check_vocabulary, read_text
from genai_bundle.ports import match_ports

if TYPE_CHECKING:
    from genai_bundle.builder.options import BuildOptions

LAYOUT = "a folder with inference_metadata.yaml"

FILE = "inference_metadata.yaml"

GRAPH = "model.onnx"

ROLES = {"token_input": "ids", "attention_mask_input": "mask", "position_ids_input": "positions"}
"""Keys of `model.io` that name a port, and what the port is fed with."""

CAPABILITIES = ("kv_cache", "grouped_query_attention", "multi_head_attention")
"""Words of `required_capabilities` that a runner of bundles meets."""

_NUMBER = re.compile(r"\.\d+\.")

DESCRIBES = ("type", "num_attention_heads", "num_kv_heads", "head_dim")
"""Keys of `model.attention` that describe what the graph already does."""

EXPERTS = (
    "representation", "routed_expert_count", "shared_expert_count", "experts_per_token", "expert_intermediate_size",
    "shared_expert_intermediate_size", "activation",
)  # fmt: skip
"""The same of `model.mixture_of_experts`."""


def recognises(path: Path) -> bool:
    return (path / FILE).is_file()


def assemble(path: Path, options: BuildOptions, tell: Progress) -> Assembled:
    """Read the folder, run its graph, say it as a manifest. Raises SourceError."""
    values = _read(path / FILE)
    if "pipeline" in values or not (path / GRAPH).is_file():
        raise SourceError(
            f"describes several graphs, expected one decoder in {GRAPH}", where=FILE,
            hint="Folders with several components cannot be imported yet; build from the checkpoint",
        )  # fmt: skip
    metadata = Section(values, FILE)
    if set(map(str, values.get("required_capabilities") or [])) <= set(CAPABILITIES):
        metadata.ignore("required_capabilities")
    metadata.section("kv_cache").only("native_dtype", "float32", "float16", "bfloat16")  # ports say it themselves
    tell("reading graphs")
    graph = _portable(read_graph("decoder", path / GRAPH))
    model = metadata.section("model")
    context = model.count("max_sequence_length") or None
    _description(model, context)
    body, rows = _body(graph, model.section("io"), context)
    generation = read_generation(path)
    text = read_text(path, None, ({}, generation.values))
    check_vocabulary(text, rows, "the last axis of its logits")
    notes = list(generation.notes)
    if not text.eos:
        notes.append("the folder names no end-of-text id: an answer ends where max_tokens says")
    found = Pipeline("text-generation", body, text, generation.options, rows, context or UNKNOWN)
    configs = [metadata, *([generation.section] if generation.section else [])]
    return assemble_pipeline(path, found, configs, notes, options, tell, [path / FILE])


def _portable(graph: SourceGraph) -> SourceGraph:
    """The graph with the bodies of its functions in their place: mobius gives engines' operators such bodies."""
    if not graph.model.functions:
        return graph
    return replace(graph, model=inline_local_functions(graph.model))


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"is not YAML: {reason}", where=file.name) from error
    if not isinstance(values, dict):
        raise SourceError("is not a mapping", where=file.name)
    return values


def _description(model: Section, context: int | None) -> None:
    """What describes the graph, and so changes nothing. A window is another matter: see the module."""
    attention = model.section("attention")
    attention.ignore(*DESCRIBES)
    if context is not None and attention.value("sliding_window") is not None:
        window = attention.count("sliding_window")
        if window < context:
            raise SourceError(
                f"is {window}, but the graph attends to all of {context} tokens",
                where=attention.where("sliding_window"),
                hint="Build from the checkpoint",
            )
    model.ignore("architecture")
    if "mixture_of_experts" in model:
        model.section("mixture_of_experts").ignore(*EXPERTS)
        model.section("mixture_of_experts").value("router")


def _body(graph: SourceGraph, io: Section, context: int | None) -> tuple[Body, int]:
    """What a step runs, and the number of ids that the logits speak of."""
    for side, ports in (("inputs", graph.ports.inputs), ("outputs", graph.ports.outputs)):
        declared = [port.text("name") for port in io.sections(side)]
        for port in io.sections(side):
            port.ignore("dtype", "rank", "shape")
        if declared and set(declared) != set(ports):
            raise SourceError(f"names the ports {declared}, but {GRAPH} has {list(ports)}", where=io.where(side))
    io.only("kv_ownership", "owned")
    io.only("sequence_source", "token_ids")
    feeds = {io.text(key): value for key, value in ROLES.items() if key in io}
    logits = io.text("logits_output")
    tokens = io.text("token_input")
    if tokens not in graph.ports.inputs or logits not in graph.ports.outputs:
        raise SourceError(
            f"names no {'token_input' if tokens not in graph.ports.inputs else 'logits_output'} that {GRAPH} has",
            where=io.where("token_input"),
        )
    caches = _caches(graph, io, tokens, context)
    past = {port for cache in caches for port in match_ports(cache.ports, graph.ports)}
    unfed = [name for name in graph.ports.inputs if name not in past and name not in feeds]
    if unfed:
        raise graph.error(f"its input {unfed[0]!r} has no role in {FILE}")
    rows = graph.ports.outputs[logits].dims[-1]
    if not isinstance(rows, int):
        raise graph.error(f"the last axis of its output {logits!r} is open, expected the number of ids")
    return Body([Stage(graph, feeds, {logits: "logits"})], caches), rows


def _caches(graph: SourceGraph, io: Section, tokens: str, context: int | None) -> list[Cache]:
    grown = list(zip(io.texts("kv_inputs"), io.texts("kv_outputs"), strict=False))
    found = []
    if grown:
        io.only("kv_update", "append")
        axis = len(graph.ports.inputs[grown[0][0]].dims) - 2 if grown[0][0] in graph.ports.inputs else 2
        found.append(Cache("kv", graph.name, _patterns(graph, grown, io), axis, "append", tokens, context))
    replaced = []
    for pair in io.sections("state_pairs"):
        pair.only("init", "zeros")
        pair.only("update", "replace")
        replaced.append((pair.text("input"), pair.text("output")))
    if replaced:
        found.append(Cache("state", graph.name, _patterns(graph, replaced, io), update="replace"))
    return found


def _patterns(graph: SourceGraph, pairs: Sequence[tuple[str, str]], io: Section) -> dict[str, str]:
    """The pairs with `{n}` for a layer's number; they must say no more and no less than the pairs."""
    patterns = {_NUMBER.sub(".{n}.", past): _NUMBER.sub(".{n}.", present) for past, present in pairs}
    if match_ports(patterns, graph.ports) != dict(pairs):
        raise SourceError("the ports that it pairs are not those of the graph", where=io.where("kv_inputs"))
    return patterns
