# SPDX-License-Identifier: Apache-2.0
"""Speech written down: an encoder-decoder over log-mel spectrograms, in a language and for a task if it has several."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_bundle.builder import generation
from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.kinds import Evidence
from genai_bundle.builder.kinds.seq2seq import answer_steps, golden_test, start_input, states
from genai_bundle.builder.parity import TOLERANCE
from genai_bundle.builder.speech import (
    features_files,
    make_detect,
    make_words,
    read_prompt,
    read_spectrogram,
    sound,
)

if TYPE_CHECKING:
    from genai_bundle.builder.exporters import Export
    from genai_bundle.writer import Source

STEPS = 24
"""Cached steps of each answer: more than the 16 that a proof needs."""

RATE = 16_000

SECONDS = (0.7, 1.9)
"""Lengths of the golden sounds."""

SOUND = "golden/sound-{}.npy"


def matches(config: Mapping[str, Any]) -> bool:
    named = config.get("architectures") or ["ForConditionalGeneration"]
    return (
        bool(config.get("is_encoder_decoder"))
        and "num_mel_bins" in config
        and any(str(name).endswith("ForConditionalGeneration") for name in named)
    )


def exporters() -> Mapping[str, Callable[[Checkpoint], Export]]:
    return {"transformers": _export}


def _export(checkpoint: Checkpoint) -> Export:
    from tokenizers import Tokenizer

    from genai_bundle.builder.exporters.seq2seq import export_speech
    from genai_bundle.builder.log_mel import make_log_mel

    prompt = read_prompt(checkpoint)
    made = generation.with_rules(export_speech(checkpoint), generation.rules(checkpoint, prompt.length))
    graphs = {**made.graphs, "log_mel": make_log_mel(read_spectrogram(checkpoint))}
    if prompt.languages:
        graphs["detect"] = make_detect(prompt)
        graphs["words"] = make_words(prompt, Tokenizer.from_str(checkpoint.text.tokenizer.decode()))
    return replace(made, graphs=graphs)


def ask(checkpoint: Checkpoint) -> Evidence:
    from genai_bundle.builder import parity_speech
    from genai_bundle.builder.prove import prove_graphs
    from genai_bundle.builder.reference import reference_name
    from genai_bundle.builder.reference_speech import Speech

    model, prompt = Speech(checkpoint), read_prompt(checkpoint)
    sounds = [sound(int(seconds * RATE), RATE, seed) for seed, seconds in enumerate(SECONDS)]
    known = [min(prompt.languages.values()), prompt.tasks["transcribe"]] if prompt.languages else []
    start = [prompt.start, *known, *prompt.end]
    answers, tests = [], []
    for number, one in enumerate(sounds):
        features = model.features(one)
        answers.append(model.answer({"input_features": features}, start, STEPS))
        for inputs in ({}, *({"language": language} for language in list(prompt.languages)[:1])):
            options = {**inputs, "task": "transcribe"} if prompt.languages else {}
            spoken = model.transcribe(features, prompt.length, STEPS, **options, **generation.OFF)
            tests += golden_test(
                {"audio": {"file": SOUND.format(number)}, **inputs}, spoken, answers[-1].logits, checkpoint.generation
            )
    proof = {
        "reference": reference_name(),
        "steps": STEPS,
        "max_abs": TOLERANCE,
        "checks": [
            "spectrogram",
            "hidden states",
            "prefill",
            "cached steps",
            "pieces",
            "batch of two",
            "greedy tokens",
        ],
    }

    def prove(path: Path, backend: str | None) -> Mapping[str, float]:
        adapter = checkpoint.adapter_name
        return prove_graphs(path, lambda graphs: parity_speech.check(graphs, sounds, answers), backend, adapter)

    return Evidence(tests, proof, prove, generation.dropped(checkpoint), features_files(checkpoint))


def document(checkpoint: Checkpoint, export: Export, graphs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    prompt = read_prompt(checkpoint)
    host = {"log_mel", "words"}
    hear = [
        {"run": "log_mel", "in": {"audio": "audio"}, "out": {"input_features": "features"}},
        {"run": "encoder", "in": {"input_features": "features"}, "out": {"last_hidden_state": "hidden"}},
    ]
    audio = {"type": "audio", "rate": RATE, "dims": ["N"], "description": "Speech; what is too long is cut off."}
    if prompt.languages:
        settings, begin = _language_inputs(prompt.languages), _prompt_steps(prompt.start, prompt.end)
    else:
        settings, begin = {"start": start_input([prompt.start, *prompt.end])}, []
    return {
        "task": "automatic-speech-recognition",
        "graphs": {name: {**entry, "place": "host"} if name in host else entry for name, entry in graphs.items()},
        "inputs": {"audio": audio, **settings},
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}, "text": {"type": "text", "dims": ["T*"]}},
        "state": states(export, checkpoint.config.get("max_target_positions")),
        "steps": [*hear, *begin, *answer_steps(export, heard=bool(begin))],
        "text": {"tokenizer": "tokenizer.json", "eos": list(checkpoint.text.eos)},
        "generation": generation.defaults(checkpoint, prompt.length),
    }


def _language_inputs(languages: Mapping[str, int]) -> dict[str, Any]:
    codes = ", ".join(sorted(text.strip("<|>") for text in languages))
    return {
        "language": {
            "type": "text", "optional": True,
            "description": f"What is spoken, a code or an English name; found out where not given. One of {codes}.",
        },
        "task": {
            "type": "text", "default": "transcribe",
            "description": "transcribe: in the language that is spoken. translate: into English.",
        },
    }  # fmt: skip


def _prompt_steps(start: int, end: tuple[int, ...]) -> list[dict[str, Any]]:
    """The decoder hears all with its first token, which also tells the language; the rest of the prompt is `start`."""
    first = {
        "run": "decoder", "in": {"encoder_hidden_states": "hidden"}, "with": {"input_ids": [[start]]},
        "out": {"logits": "guess"},
    }  # fmt: skip
    named = [
        {"run": "text.encode@1", "in": {"text": "language"}, "with": {"add_special": False}, "out": {"ids": "name"}},
        {"run": "words", "in": {"ids": "name"}, "out": {"token": "spoken"}},
    ]
    found = [{"run": "detect", "in": {"logits": "guess"}, "out": {"token": "spoken"}}]
    both = {"run": "concat@1", "in": {"a": "spoken", "b": "wanted"}, "with": {"axis": 1}}
    return [
        first,
        {"if": "language", "then": named, "else": found, "out": ["spoken"]},
        {"run": "text.encode@1", "in": {"text": "task"}, "with": {"add_special": False}, "out": {"ids": "asked"}},
        {"run": "words", "in": {"ids": "asked"}, "out": {"token": "wanted"}},
        *([{**both, "out": {"y": "both"}},
           {"run": "concat@1", "in": {"a": "both"}, "with": {"b": [list(end)], "axis": 1}, "out": {"y": "start"}}]
          if end else [{**both, "out": {"y": "start"}}]),
    ]  # fmt: skip


def members(checkpoint: Checkpoint) -> Mapping[str, Source]:
    found: dict[str, Source] = {"tokenizer.json": checkpoint.text.tokenizer}
    for seed, seconds in enumerate(SECONDS):
        file = io.BytesIO()
        np.save(file, sound(int(seconds * RATE), RATE, seed))
        found[SOUND.format(seed)] = file.getvalue()
    return found
