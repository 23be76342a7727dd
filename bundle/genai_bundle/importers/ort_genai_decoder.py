# SPDX-License-Identifier: Apache-2.0
"""Decoders of ONNX Runtime GenAI: one graph, or several that run one after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from genai_bundle.errors import SourceError
from genai_bundle.importers.body import Body, Cache, Stage
from genai_bundle.importers.foreign import Section
from genai_bundle.importers.graphs import SourceGraph, read_graph
from genai_bundle.ports import match_ports
from genai_bundle.sanitize import CONTRIB

INPUTS = {
    "input_ids": "ids", "attention_mask": "mask", "position_ids": "positions", "total_sequence_length": "total",
}  # fmt: skip
"""Inputs by the configuration's word for them, each with what it is fed."""

PAIRS = (
    ("past_key_names", "present_key_names", "past_key_values.%d.key", "present.%d.key"),
    ("past_value_names", "present_value_names", "past_key_values.%d.value", "present.%d.value"),
    ("past_names", "present_names", "", ""),
)
"""The configuration's words for a past and its present, with the patterns that hold where they are not given."""

EVICTS = "sliding_window_cache"
"""The attribute of GroupQueryAttention for a buffer no longer than its window."""

STATES = (("past_conv_names", "present_conv_names"), ("past_recurrent_names", "present_recurrent_names"))


def decoder_body(path: Path, config: Section, notes: list[str]) -> Body:
    """What the decoder runs for each step. Raises SourceError."""
    decoder = config.section("model").section("decoder")
    decoder.ignore("hidden_size", "head_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    decoder.ignore("layer_types", "conv_cache_size")
    _window(decoder, notes)
    names = {word: decoder.section("inputs").text(word, word) for word in INPUTS}
    caches = _patterns(decoder)
    shared = config.section("search").flag("past_present_share_buffer")
    context = config.section("model").count("context_length")
    logits = decoder.section("outputs").text("logits", "logits")
    stages: list[Stage] = []
    states: list[Cache] = []
    for stage in _stages(path, decoder, logits, notes):
        graph = _whole_caches(stage.graph, notes)
        stage = replace(stage, graph=graph, prompt=stage.prompt and _whole_caches(stage.prompt, notes))
        own = [cache for cache in caches if match_ports(cache, graph.ports)]
        fix_dims(graph, match_ports(caches[0], graph.ports), decoder)
        roles = {port: role for word, role in INPUTS.items() if (port := names[word]) in graph.ports.inputs}
        stage = replace(stage, feeds={**stage.feeds, **roles})
        past = {port for cache in own for port in match_ports(cache, graph.ports)}
        fed = {*stage.feeds, *past}
        unfed = [name for name, port in graph.ports.inputs.items() if name not in fed and not port.optional]
        if unfed:
            raise graph.error(f"its input {unfed[0]!r} has a role that is not understood")
        stages.append(stage)
        for index, cache in enumerate(own):
            states.append(_state(graph, cache, index, len(states), names["input_ids"], shared, context))
    if not states:
        raise SourceError("no graph of the decoder has the past ports that it names", where="genai_config.json")
    return Body(stages, states)


def _patterns(decoder: Section) -> list[dict[str, str]]:
    """{past pattern: present pattern}: keys and values are one group, each other kind of state its own."""
    inputs, outputs = decoder.section("inputs"), decoder.section("outputs")
    grown = {}
    for past, present, past_default, present_default in PAIRS:
        before, after = inputs.text(past, past_default), outputs.text(present, present_default)
        if before and after:
            grown[printf_pattern(before, inputs, past)] = printf_pattern(after, outputs, present)
    found = [grown]
    for past, present in STATES:
        if past in inputs and present in outputs:
            before, after = inputs.text(past), outputs.text(present)
            found.append({printf_pattern(before, inputs, past): printf_pattern(after, outputs, present)})
    return found


def printf_pattern(printf: str, section: Section, key: str) -> str:
    pattern, count = re.subn(r"%0?\d*d", "{n}", printf)
    if count != 1 or "%" in pattern:
        raise section.wrong(key, "a name with one %d for the layer")
    return pattern


def fix_dims(graph: SourceGraph, pairs: Mapping[str, str], decoder: Section) -> None:
    """Write heads and head size into the ports of a cache, [.., heads, tokens, size], where they are symbols only."""
    sizes = {-3: decoder.count("num_key_value_heads"), -1: decoder.count("head_size")}
    ports = {*pairs, *pairs.values()}
    for value in (*graph.model.graph.input, *graph.model.graph.output):
        dims = value.type.tensor_type.shape.dim
        for index, size in sizes.items() if value.name in ports and len(dims) >= 4 else ():
            if not dims[index].HasField("dim_value"):
                if not size:
                    raise graph.error(
                        f"dim {index} of its port {value.name!r} is open, and the configuration is silent"
                    )
                dims[index].dim_value = size


def _state(
    graph: SourceGraph, ports: Mapping[str, str], group: int, number: int, ids: str, shared: bool, context: int
) -> Cache:
    pairs = match_ports(ports, graph.ports)
    present = {past: partner for past, partner in ports.items() if match_ports({past: partner}, graph.ports)}
    name = ("kv" if group == 0 else "state") + (str(number) if number else "")
    if group:
        return Cache(name, graph.name, present, update="replace")
    port = graph.ports.inputs[next(iter(pairs))]
    tokens = next((name for name in (ids, "inputs_embeds") if name in graph.ports.inputs), None) or _widest(graph)
    one_buffer = shared and _grouped(graph)
    return Cache(
        name, graph.name, present, len(port.dims) - 2, "shared" if one_buffer else "append", tokens, context
    )  # fmt: skip


def _widest(graph: SourceGraph) -> str:
    """The port that counts the new tokens of a graph in the middle: hidden states, [1, tokens, width]."""
    for name, port in graph.ports.inputs.items():
        if port.dtype.startswith(("f", "bf")) and len(port.dims) == 3:
            return name
    raise graph.error("no input of the graph says how many tokens are new")


def _grouped(graph: SourceGraph) -> bool:
    """Whether its attention can write into the buffer that it reads."""
    return any(node.op_type == "GroupQueryAttention" and node.domain in CONTRIB for node in graph.model.graph.node)


def _whole_caches(graph: SourceGraph, notes: list[str]) -> SourceGraph:
    """A graph whose attention keeps a window's tokens only, with caches of the whole text: it reads the same of both.

    What it evicts could not be taken back, and no other engine does so.
    """
    model, changed = onnx.ModelProto.FromString(graph.model.SerializeToString()), False
    for node in model.graph.node:
        for attribute in [one for one in node.attribute if one.name == EVICTS and one.i]:
            node.attribute.remove(attribute)
            changed = True
    if not changed:
        return graph
    notes.append(f"{graph.where}: caches of windows hold all tokens, of which attention reads the window")
    return replace(graph, model=model, runs=model)


def _window(decoder: Section, notes: list[str]) -> None:
    """A window that the graph keeps itself is understood; one that the runtime has to slide is not."""
    if "sliding_window" not in decoder:
        return
    window = decoder.section("sliding_window")
    window.only("slide_key_value_cache", False)
    window.only("slide_inputs", False)
    if "slide_key_value_cache" in window and not window.value("slide_key_value_cache"):
        notes += [f"left out, the graph keeps it: {key}" for key in window.ignore("window_size", "layers")]
        window.ignore("pad_value", "alignment", "cache_slack")


def _stages(path: Path, decoder: Section, logits: str, notes: list[str]) -> list[Stage]:
    """The graphs in their order, and what they give one another."""
    if "pipeline" not in decoder:
        graph = read_graph("decoder", decoder.file_in(path, "filename"))
        if logits not in graph.ports.outputs:
            raise graph.error(f"there is no output {logits!r}, which the configuration names as the logits")
        return [Stage(graph, {}, {logits: "logits"})]
    parts = [(name, part.section(name)) for part in decoder.sections("pipeline") for name in part.names()]
    known: dict[str, str] = {}
    found = []
    for name, part, prompt in _needed(parts):
        part.ignore("is_lm_head", "reset_session_idx")
        graph = read_graph(_name(name), part.file_in(path, "filename"))
        first = read_graph(_name(prompt[0]), prompt[1].file_in(path, "filename")) if prompt else None
        if prompt:
            prompt[1].ignore("inputs", "outputs", "output_names_forwarder", "is_lm_head", "reset_session_idx")
            notes.append(f"left out: the graph {prompt[0]}, whose work {name} does as well")
        feeds = {port: known[port] for port in part.texts("inputs") if port in known}
        forwarded = _texts(part, "output_names_forwarder")
        outputs = {port: forwarded.get(port, port) for port in part.texts("outputs") if port in graph.ports.outputs}
        known |= {port: "logits" if port == logits else _name(port) for port in outputs.values()}
        found.append(Stage(graph, feeds, {port: known[value] for port, value in outputs.items()}, prompt=first))
    read = {value for stage in found for value in stage.feeds.values()} | {"logits"}
    return [
        replace(stage, outputs={port: value for port, value in stage.outputs.items() if value in read})
        for stage in found
    ]


Part = tuple[str, Section]


def _needed(parts: Sequence[Part]) -> list[tuple[str, Section, Part | None]]:
    """The graphs that run for each token, each with the one that takes its place for the prompt.

    The grammar has no second graph for the prompt, nor need of one: the proof compares with what the two give.
    """
    later = [part for part in parts if part[1].flag("run_on_token_gen", True)]
    prompts = iter([part for part in parts if not part[1].flag("run_on_token_gen", True)])
    found = [(name, part, None if part.flag("run_on_prompt", True) else next(prompts, None)) for name, part in later]
    if next(prompts, None) or any(prompt is None and not part.flag("run_on_prompt", True) for _, part, prompt in found):
        raise SourceError(
            "graphs for the prompt and graphs for later tokens do not come in pairs",
            where="genai_config.json: model.decoder.pipeline",
        )  # fmt: skip
    return found


def _texts(section: Section, key: str) -> dict[str, str]:
    found = section.value(key) or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise section.wrong(key, "names by name")
    return found


def _name(text: str) -> str:
    """A name of the grammar from a foreign one."""
    name = re.sub(r"\W", "_", text)
    return name if re.match(r"[A-Za-z_]", name) else f"_{name}"
