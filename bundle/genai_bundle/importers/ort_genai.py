# SPDX-License-Identifier: Apache-2.0
"""Folders of ONNX Runtime GenAI: `genai_config.json` beside ONNX files.

The configuration names ports by printf patterns, keys before values; what it does not name has a default name, and a
port is fed only where the graph has it. How sessions run (threads, providers, batches) is no business of a bundle.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle.errors import SourceError
from genai_bundle.importers import Assembled, Progress
from genai_bundle.importers.assembling import Pipeline, assemble_pipeline
from genai_bundle.importers.foreign import Section, read_section
from genai_bundle.importers.ort_genai_decoder import decoder_body
from genai_bundle.importers.ort_genai_marian import marian_pipeline
from genai_bundle.importers.ort_genai_whisper import whisper_pipeline
from genai_bundle.importers.text import check_vocabulary, read_text

if TYPE_CHECKING:
    from genai_bundle.builder.options import BuildOptions

LAYOUT = "a folder of ONNX Runtime GenAI"

CONFIG = "genai_config.json"

POLICY = ("session_options", "run_options", "enable_profiling")
"""How a session runs: threads, providers, arenas. Nothing in the meaning of a model depends on it."""

BEAMS = ("num_beams", "num_return_sequences", "early_stopping", "length_penalty", "diversity_penalty")
SERVING = ("batch_size", "chunk_size", "random_seed", "num_draft_tokens")


def recognises(path: Path) -> bool:
    return (path / CONFIG).is_file()


def assemble(path: Path, options: BuildOptions, tell: Progress) -> Assembled:
    """Read the folder, run its graphs, say it as a manifest. Raises SourceError."""
    config = read_section(path / CONFIG, required=True)
    assert config is not None
    tell("reading graphs")
    model = config.section("model")
    notes: list[str] = []
    found = _reader(model)(path, config, notes)
    return assemble_pipeline(path, found, [config], notes, options, tell)


def _reader(model: Section) -> Callable[[Path, Section, list[str]], Pipeline]:
    if "rnn_states_prev" in model.section("decoder").section("inputs"):
        return _recurrent
    if "cross_past_key_names" in model.section("decoder").section("inputs"):
        return _speech
    if "encoder" in model:
        raise SourceError("describes an encoder of a kind that cannot be imported", where=f"{CONFIG}: model.encoder")
    return _decoder


def _decoder(path: Path, config: Section, notes: list[str]) -> Pipeline:
    model, search = config.section("model"), config.section("search")
    body = decoder_body(path, config, notes)
    text, context = _common(path, config, notes)
    return Pipeline("text-generation", body, text, _generation(search, notes), model.count("vocab_size"), context)


def _recurrent(path: Path, config: Section, notes: list[str]) -> Pipeline:
    text, _ = _common(path, config, notes)
    return marian_pipeline(path, config.section("model"), text, _generation(config.section("search"), notes))


def _speech(path: Path, config: Section, notes: list[str]) -> Pipeline:
    text, _ = _common(path, config, notes)
    return whisper_pipeline(path, config.section("model"), text, _generation(config.section("search"), notes))


def _common(path: Path, config: Section, notes: list[str]) -> tuple[Any, int]:
    """The text side and the context; what every kind of model states."""
    model, search = config.section("model"), config.section("search")
    model.ignore("type", "pad_token_id", "bos_token_id", "sep_token_id")
    for part in (model.section("decoder"), model.section("encoder"), *model.section("decoder").sections("pipeline")):
        _policy(part, notes)
    eos = model.ids("eos_token_id")
    context = model.count("context_length")
    if context < 1:
        raise model.wrong("context_length", "the model's context as a number of tokens")
    longest = search.count("max_length", context)
    if 0 < longest < context:
        notes.append(f"left out: search.max_length {longest}, for prompt and answer together; the context is {context}")
    text = read_text(path, eos)
    check_vocabulary(text, model.count("vocab_size"), f"model.vocab_size in {CONFIG}")
    if text.assets is None:
        notes.append("there is no tokenizer.json: the bundle takes and gives ids")
    return text, context


def _policy(section: Section, notes: list[str]) -> None:
    notes += [f"left out, deployment and not meaning: {key}" for key in section.ignore(*POLICY)]


def _generation(search: Section, notes: list[str]) -> dict[str, Any]:
    """The manifest's `generation`: what generate() does with the folder as it is."""
    notes += [f"left out, for the caller to choose: {key}" for key in search.ignore(*BEAMS, *SERVING)]
    search.only("min_length", 0)
    search.flag("past_present_share_buffer")
    sampled = search.flag("do_sample")
    temperature, top_k, top_p = search.number("temperature", 1.0), search.count("top_k"), search.number("top_p")
    found: dict[str, Any] = {"temperature": temperature if sampled else 0.0}
    if sampled:
        found |= {"top_k": top_k} if top_k else {}
        found |= {"top_p": top_p} if 0 < top_p < 1 else {}
    penalty, size = search.number("repetition_penalty", 1.0), search.count("no_repeat_ngram_size")
    found |= {"repetition_penalty": penalty} if penalty != 1.0 else {}
    return found | ({"no_repeat_ngram_size": size} if size else {})
