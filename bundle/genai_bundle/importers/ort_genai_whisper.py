# SPDX-License-Identifier: Apache-2.0
"""Speech models of ONNX Runtime GenAI: the encoder gives the cross caches, which the decoder reads at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genai_bundle.importers.assembling import Before, Pipeline
from genai_bundle.importers.body import Body, Cache, Stage
from genai_bundle.importers.foreign import Section
from genai_bundle.importers.graphs import SourceGraph, read_graph
from genai_bundle.importers.ort_genai_decoder import INPUTS, fix_dims, printf_pattern
from genai_bundle.importers.plain import Array, Run, shaped
from genai_bundle.importers.speech import read_hearing
from genai_bundle.importers.text import Text
from genai_bundle.ports import Ports, match_ports

CROSS = (
    ("cross_past_key_names", "cross_present_key_names"), ("cross_past_value_names", "cross_present_value_names"),
)  # fmt: skip
SELF = (("past_key_names", "present_key_names"), ("past_value_names", "present_value_names"))


def whisper_pipeline(path: Path, model: Section, text: Text, generation: dict[str, Any]) -> Pipeline:
    """Raises SourceError."""
    encoder_config, config = model.section("encoder"), model.section("decoder")
    encoder_config.ignore("hidden_size", "head_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    config.ignore("hidden_size", "num_attention_heads", "num_hidden_layers")
    encoder = read_graph("encoder", encoder_config.file_in(path, "filename"))
    decoder = read_graph("decoder", config.file_in(path, "filename"))
    hearing = read_hearing(path)
    inputs, outputs = config.section("inputs"), config.section("outputs")
    grown = {
        printf_pattern(inputs.text(past), inputs, past): printf_pattern(outputs.text(present), outputs, present)
        for past, present in SELF
    }
    fix_dims(decoder, match_ports(grown, decoder.ports), config)
    made = encoder_config.section("outputs")
    made.ignore("encoder_hidden_states")
    cross = {
        printf_pattern(inputs.text(past), inputs, past): printf_pattern(made.text(present), made, present)
        for past, present in CROSS
    }
    crossed = match_ports(cross, Ports(decoder.ports.inputs, encoder.ports.outputs))
    sound = encoder_config.section("inputs").text("audio_features", "audio_features")
    logits = outputs.text("logits", "logits")
    names = {word: inputs.text(word, word) for word in INPUTS}
    feeds = {port: role for word, role in INPUTS.items() if (port := names[word]) in decoder.ports.inputs}
    feeds = {port: "start" if role == "ids" else role for port, role in feeds.items()} | crossed
    _check(encoder, {sound}, [*crossed.values()])
    _check(decoder, {*feeds, *match_ports(grown, decoder.ports)}, [logits])
    context = model.count("context_length")
    body = Body(
        [Stage(decoder, feeds, {logits: "logits"})],
        [Cache("kv", "decoder", grown, tokens=names["input_ids"], capacity=context)],
        carried="start",
    )
    begin = model.ids("decoder_start_token_id") or model.ids("bos_token_id")
    if not begin:
        raise model.wrong("bos_token_id", "the id that an answer begins with")
    steps = [
        hearing.step(),
        {"run": "encoder", "in": {sound: "features"}, "out": {value: value for value in crossed.values()}},
    ]

    def plain(audio: Any, runs: Mapping[str, Run]) -> tuple[Mapping[str, Array], Sequence[int]]:
        features = shaped(hearing.features(audio), encoder.ports.inputs[sound])
        given = runs["encoder"]({sound: features})
        return {value: given[value] for value in crossed.values()}, begin[:1]

    about = "The ids that an answer begins with: start, language, task and so on, as the model was taught."
    start = {"type": "i64", "dims": [1, "S"], "default": [begin[:1]], "description": about}
    before = Before([hearing.graph, encoder], steps, {"start": start}, plain)
    return Pipeline(
        "automatic-speech-recognition", body, text, generation, model.count("vocab_size"), context,
        before=before, hearing=hearing,
    )  # fmt: skip


def _check(graph: SourceGraph, fed: set[str], wanted: Sequence[str]) -> None:
    unfed = [name for name, port in graph.ports.inputs.items() if name not in fed and not port.optional]
    absent = [name for name in wanted if name not in graph.ports.outputs]
    if unfed or absent or not wanted:
        raise graph.error(f"its port {(unfed or absent or ['?'])[0]!r} is missing or has a role that is not understood")
