# SPDX-License-Identifier: Apache-2.0
"""Translation models of ONNX Runtime GenAI with a recurrent decoder (`rnn_states_prev`).

The runtime appends the ending id to the prompt, runs the encoder once, and begins the answer with the id that the
configuration calls bos. The decoder takes one id at a time and hands its state on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genai_bundle.importers.assembling import Before, Pipeline
from genai_bundle.importers.body import Body, Cache, Stage
from genai_bundle.importers.foreign import Section
from genai_bundle.importers.graphs import SourceGraph, made_graph, one_row, read_graph
from genai_bundle.importers.plain import Array, Run, shaped
from genai_bundle.importers.text import Text

DECODER = ("encoder_hidden_states", "encoder_attention_mask", "past_key_values_length")
BATCH_AXIS = {"rnn_states_prev": 1, "rnn_states": 1}
"""Ports whose axis 0 counts layers, not requests."""


def marian_pipeline(path: Path, model: Section, text: Text, generation: dict[str, Any]) -> Pipeline:
    """Raises SourceError."""
    encoder, encoder_rows, encoder_axes = _graph("encoder", path, model.section("encoder"))
    decoder, decoder_rows, decoder_axes = _graph("decoder", path, model.section("decoder"))
    eos = model.ids("eos_token_id")
    start = model.ids("decoder_start_token_id") or model.ids("bos_token_id")
    if not eos or not start:
        raise model.wrong("eos_token_id", "the ending id, and bos_token_id with which an answer begins")
    inputs, outputs = model.section("decoder").section("inputs"), model.section("decoder").section("outputs")
    port = {word: inputs.text(word, word) for word in ("input_ids", "rnn_states_prev", *DECODER)}
    logits, states = outputs.text("logits", "logits"), outputs.text("rnn_states", "rnn_states")
    read = model.section("encoder").section("inputs")
    ids, mask = read.text("input_ids", "input_ids"), read.text("attention_mask", "attention_mask")
    hidden = model.section("encoder").section("outputs").text("encoder_outputs", "encoder_outputs")
    feeds = {
        port["input_ids"]: "start", port["encoder_hidden_states"]: "encoded",
        port["encoder_attention_mask"]: "source_mask", port["past_key_values_length"]: "len",
    }  # fmt: skip
    body = Body(
        [Stage(decoder, feeds, {logits: "logits"})],
        [Cache("rnn", "decoder", {port["rnn_states_prev"]: states}, update="replace")],
        carried="start",
    )
    prepare = made_graph(
        "prepare",
        f"prepare (int64[1,N] ids) => (int64[1,M] source, int64[1,M] mask) <int64[1,1] end = {{{eos[0]}}}>"
        " { source = Concat <axis = 1> (ids, end)  size = Shape (source)"
        "  mask = ConstantOfShape <value: tensor = int64[1] {1}> (size) }",
    )
    steps = [
        {"run": "prepare", "in": {"ids": "ids"}, "out": {"source": "source", "mask": "source_mask"}},
        {"run": "encoder", "in": {ids: "source", mask: "source_mask"}, "out": {hidden: "encoded"}},
    ]

    def plain(prompt: Sequence[int], runs: Mapping[str, Run]) -> tuple[Mapping[str, Array], Sequence[int]]:
        tokens = np.array([[*prompt, eos[0]]])
        given = {
            ids: shaped(tokens, encoder.ports.inputs[ids]),
            mask: shaped(tokens * 0 + 1, encoder.ports.inputs[mask]),
        }
        encoded = runs["encoder"](given)[hidden]
        return {"encoded": encoded, "source_mask": tokens * 0 + 1}, start[:1]

    begin = {"type": "i64", "dims": [1, 1], "default": [start[:1]], "description": "The id that an answer begins with."}
    frozen = encoder.ports.inputs[ids].dims[1]
    return Pipeline(
        "text-to-text", body, text, generation, model.count("vocab_size"), model.count("context_length"),
        longest=frozen - 1 if isinstance(frozen, int) else None,
        before=Before([prepare, encoder], steps, {"start": begin}, plain),
        wraps={"encoder": repeated(encoder_axes, encoder_rows), "decoder": repeated(decoder_axes, decoder_rows)},
    )  # fmt: skip


def _graph(name: str, path: Path, section: Section) -> tuple[SourceGraph, int, Mapping[str, int]]:
    """A graph for one request, and for how many, along which axes, the file was made."""
    section.ignore("hidden_size", "head_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    graph = read_graph(name, section.file_in(path, "filename"))
    every = {**graph.ports.inputs, **graph.ports.outputs}
    axes = {
        port: BATCH_AXIS.get(port, 0)
        for port, found in every.items()
        if found.dims and port != "past_key_values_length"
    }
    return *one_row(graph, axes), axes


def repeated(axes: Mapping[str, int], rows: int) -> Callable[[Run], Run]:
    """The same request in every row of a graph that was made for `rows` of them."""

    def wrap(run: Run) -> Run:
        def rowwise(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            outputs = run(
                {name: np.repeat(value, rows, axes[name]) if name in axes else value for name, value in feeds.items()}
            )
            return {name: np.take(value, [0], axes[name]) for name, value in outputs.items()}

        return rowwise if rows > 1 else run

    return wrap
