# SPDX-License-Identifier: Apache-2.0
"""Folders of Optimum and transformers.js: `config.json` beside ONNX files, or beside a folder `onnx` with them.

config.json describes an architecture, and the graphs are that architecture already: only what a pipeline needs is read
from it. generation_config.json says how tokens are drawn, and is read strictly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle.builder.checkpoint import text_config
from genai_bundle.builder.json_file import read_object
from genai_bundle.errors import SourceError
from genai_bundle.importers import Assembled, Progress
from genai_bundle.importers.assembling import Pipeline, assemble_pipeline
from genai_bundle.importers.encoder import UNKNOWN, assemble_encoder
from genai_bundle.importers.generation_config import Generation, read_generation
from genai_bundle.importers.graphs import SourceGraph
from genai_bundle.importers.optimum_decoder import decoder_body, encoder_decoder
from genai_bundle.importers.optimum_files import Files, find_files
from genai_bundle.importers.speech import read_hearing
from genai_bundle.importers.text import Text, check_vocabulary, read_text

if TYPE_CHECKING:
    from genai_bundle.builder.options import BuildOptions

LAYOUT = "a folder of Optimum or transformers.js"

OTHERS = ("genai_config.json", "inference_metadata.yaml", "modules.json")
"""Files that make it another layout."""

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")

CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "max_target_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
)


def recognises(path: Path) -> bool:
    """A folder that also has the checkpoint's own weights is a checkpoint: its graphs are a copy of those."""
    if not (path / "config.json").is_file() or any((path / name).exists() for name in OTHERS):
        return False
    return find_files(path) is not None and not any(next(path.glob(pattern), None) for pattern in WEIGHTS)


def assemble(path: Path, options: BuildOptions, tell: Progress) -> Assembled:
    """Read the folder, run its graphs, say it as a manifest. Raises SourceError."""
    files = find_files(path)
    assert files is not None
    config = read_object(path / "config.json", required=True) or {}
    tell("reading graphs")
    notes: list[str] = []
    generation = read_generation(path)
    if "encoder_model" in files.names:
        found = _encoder_decoder(path, config, files, generation, options, notes)
    else:
        name = "decoder_model_merged" if "decoder_model_merged" in files.names else files.names[0]
        graph = files.read(name, "decoder", options.dtype_suffix)
        if "logits" not in graph.ports.outputs:
            return assemble_encoder(path, replace(graph, name="model"), config, notes, options, tell)
        found = _decoder(path, config, graph, generation, notes)
    notes += generation.notes
    configs = [generation.section] if generation.section else []
    return assemble_pipeline(path, found, configs, notes, options, tell, [path / "config.json"])


def _decoder(
    path: Path, config: Mapping[str, Any], graph: SourceGraph, generation: Generation, notes: list[str]
) -> Pipeline:
    text, vocabulary, context = _common(path, config, generation, notes)
    if generation.forced:
        raise SourceError("forced_bos_token_id has no meaning for a decoder alone", where="generation_config.json")
    body = replace(decoder_body(graph, context), banned=generation.banned, begin=generation.begin)
    return Pipeline("text-generation", body, text, generation.options, vocabulary, context or UNKNOWN)


def _encoder_decoder(
    path: Path,
    config: Mapping[str, Any],
    files: Files,
    generation: Generation,
    options: BuildOptions,
    notes: list[str],
) -> Pipeline:
    if "decoder_model_merged" not in files.names:
        raise SourceError(
            "decoder_model_merged.onnx is missing: the decoder's two halves alone cannot be imported",
            where=str(path), hint="Export again with `optimum-cli export onnx`, which merges them",
        )  # fmt: skip
    encoder = files.read("encoder_model", "encoder", options.dtype_suffix)
    decoder = files.read("decoder_model_merged", "decoder", options.dtype_suffix)
    text, vocabulary, context = _common(path, config, generation, notes)
    start = generation.values.get("decoder_start_token_id", config.get("decoder_start_token_id"))
    if type(start) is not int:
        raise SourceError("decoder_start_token_id is missing", where="config.json or generation_config.json")
    hearing = read_hearing(path) if "input_features" in encoder.ports.inputs else None
    body, before = encoder_decoder(encoder, decoder, context, [start, *generation.forced], hearing)
    body = replace(body, banned=generation.banned, begin=generation.begin)
    task = "automatic-speech-recognition" if hearing else "text-to-text"
    room = context or UNKNOWN
    return Pipeline(task, body, text, generation.options, vocabulary, room, before=before, hearing=hearing)


def _common(
    path: Path, config: Mapping[str, Any], generation: Generation, notes: list[str]
) -> tuple[Text, int, int | None]:
    """The text side, the number of ids and the context."""
    inner = text_config(config)
    rows = inner.get("vocab_size")
    if type(rows) is not int or rows < 1:
        raise SourceError(f"vocab_size is {rows!r}, expected the rows of the embedding", where="config.json")
    context = next((inner[key] for key in CONTEXT if type(inner.get(key)) is int and inner[key] > 0), None)
    text = read_text(path, None, (config, generation.values))
    check_vocabulary(text, rows, "vocab_size in config.json")
    if text.assets is None:
        notes.append("there is no tokenizer.json: the bundle takes and gives ids")
    return text, rows, context
