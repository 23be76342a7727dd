# SPDX-License-Identifier: Apache-2.0
"""Decoders as Optimum and transformers.js write them, alone and behind an encoder.

A merged decoder has a branch for the first run, which makes the cross cache, and one for later runs, which gives none:
`use_cache_branch` is the number of tokens held, as a truth value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from genai_bundle.importers.assembling import Before
from genai_bundle.importers.body import Body, Cache, Stage
from genai_bundle.importers.graphs import SourceGraph, made_graph
from genai_bundle.importers.plain import Array, Run, shaped
from genai_bundle.importers.speech import Hearing
from genai_bundle.ports import Ports, match_ports

FED = {
    "attention_mask": "mask", "decoder_attention_mask": "mask", "position_ids": "positions", "use_cache_branch": "len",
}  # fmt: skip
LITERALS: Mapping[str, Any] = {"num_logits_to_keep": 1}

GROWN = {"past_key_values.{n}.key": "present.{n}.key", "past_key_values.{n}.value": "present.{n}.value"}
SELF = {f"past_key_values.{{n}}.decoder.{kind}": f"present.{{n}}.decoder.{kind}" for kind in ("key", "value")}
CROSS = {f"past_key_values.{{n}}.encoder.{kind}": f"present.{{n}}.encoder.{kind}" for kind in ("key", "value")}
REPLACED = re.compile(r"past_(conv|recurrent|ssm)\.\d+")


def decoder_body(graph: SourceGraph, context: int | None) -> Body:
    """A decoder alone. Raises SourceError: a port has no role that is understood."""
    ports = graph.ports
    caches = [_grown("kv", graph, GROWN, context)]
    for kind in sorted({found[1] for name in ports.inputs if (found := REPLACED.fullmatch(name))}):
        caches.append(Cache(kind, graph.name, {f"past_{kind}.{{n}}": f"present_{kind}.{{n}}"}, update="replace"))
    feeds = {"input_ids": "ids"} | {port: role for port, role in FED.items() if port in ports.inputs}
    return Body([_stage(graph, feeds, caches)], caches)


def encoder_decoder(
    encoder: SourceGraph,
    decoder: SourceGraph,
    context: int | None,
    start: Sequence[int],
    hearing: Hearing | None = None,
) -> tuple[Body, Before]:
    """What runs for each token, and what runs once before. start: the ids that an answer begins with."""
    ports = decoder.ports
    caches = [_grown("self", decoder, SELF, context), Cache("cross", decoder.name, CROSS, update="once")]
    feeds = {"input_ids": "start"} | {port: role for port, role in FED.items() if port in ports.inputs}
    once = {"encoder_hidden_states": "encoded", "encoder_attention_mask": "source_mask"}
    feeds |= {port: value for port, value in once.items() if port in ports.inputs}
    body = Body([_stage(decoder, feeds, caches)], caches, carried="start")
    before = _hear(encoder, hearing) if hearing else _read(encoder, needs_mask="source_mask" in feeds.values())
    graphs, steps, encoded = before

    def plain(prompt: Any, runs: Mapping[str, Run]) -> tuple[Mapping[str, Array], Sequence[int]]:
        known = {"source_mask": np.ones((1, len(prompt)))}
        return known | {"encoded": encoded(prompt, runs[encoder.name])}, start

    begin = {
        "type": "i64", "dims": [1, "S"], "default": [list(start)], "description": "The ids that an answer begins with."
    }  # fmt: skip
    return body, Before(graphs, steps, {"start": begin}, plain)


Once = tuple[list[SourceGraph], list[dict[str, Any]], Callable[[Any, Run], Array]]
"""Graphs and steps that lead to the value `encoded`, and the same by hand from a prompt and the encoder."""


def _read(encoder: SourceGraph, *, needs_mask: bool) -> Once:
    ports = encoder.ports
    _check_encoder(encoder, ("input_ids", "attention_mask"))
    reads = {"input_ids": "ids"} | ({"attention_mask": "source_mask"} if "attention_mask" in ports.inputs else {})
    mask = made_graph(
        "mask",
        "mask (int64[1,N] ids) => (int64[1,N] mask)"
        " { size = Shape (ids)  mask = ConstantOfShape <value: tensor = int64[1] {1}> (size) }",
    )
    needed = needs_mask or "attention_mask" in reads
    steps = [{"run": "mask", "in": {"ids": "ids"}, "out": {"mask": "source_mask"}}] if needed else []
    steps.append({"run": encoder.name, "in": reads, "out": {"last_hidden_state": "encoded"}})

    def encoded(prompt: Sequence[int], run: Run) -> Array:
        known = {"ids": np.array([prompt]), "source_mask": np.ones((1, len(prompt)))}
        given = {port: shaped(known[value], ports.inputs[port]) for port, value in reads.items()}
        return run(given)["last_hidden_state"]

    return [encoder, *([mask] if needed else [])], steps, encoded


def _hear(encoder: SourceGraph, hearing: Hearing) -> Once:
    _check_encoder(encoder, ("input_features",))
    run_encoder = {"run": encoder.name, "in": {"input_features": "features"}, "out": {"last_hidden_state": "encoded"}}

    def encoded(audio: Any, run: Run) -> Array:
        port = encoder.ports.inputs["input_features"]
        return run({port.name: shaped(hearing.features(audio), port)})["last_hidden_state"]

    return [hearing.graph, encoder], [hearing.step(), run_encoder], encoded


def _check_encoder(encoder: SourceGraph, known: Sequence[str]) -> None:
    if not set(encoder.ports.inputs) <= set(known) or "last_hidden_state" not in encoder.ports.outputs:
        ports = f"{', '.join(encoder.ports.inputs)} to {', '.join(encoder.ports.outputs)}"
        raise encoder.error(f"is an encoder from {ports}, expected {known[0]} to last_hidden_state")


def _stage(graph: SourceGraph, feeds: dict[str, str], caches: Sequence[Cache]) -> Stage:
    ports = graph.ports
    literals = {port: value for port, value in LITERALS.items() if port in ports.inputs}
    past = {port for cache in caches for port in match_ports(cache.ports, ports)}
    fed = {*feeds, *literals, *past}
    unfed = [name for name, port in ports.inputs.items() if name not in fed and not port.optional]
    if unfed or "input_ids" not in ports.inputs:
        raise graph.error(f"its input {(unfed or ['input_ids'])[0]!r} is missing or has a role that is not understood")
    return Stage(graph, feeds, {"logits": "logits"}, literals)


def _grown(name: str, graph: SourceGraph, patterns: Mapping[str, str], context: int | None) -> Cache:
    pairs = match_ports(patterns, graph.ports)
    if not pairs:
        raise graph.error(
            f"has no cache ports {next(iter(patterns))}",
            "Export with a cache: `optimum-cli export onnx --task text-generation-with-past`",
        )
    past, present = next(iter(pairs.items()))
    return Cache(name, graph.name, patterns, _axis(graph.ports, past, present), "append", "input_ids", context)


def _axis(ports: Ports, past: str, present: str) -> int:
    """Where tokens are counted: the one dim that a run changes."""
    before, after = ports.inputs[past].dims, ports.outputs[present].dims
    changed = [
        axis for axis, (old, new) in enumerate(zip(before, after, strict=False)) if isinstance(old, str) and old != new
    ]
    return changed[0] if len(changed) == 1 else len(before) - 2
