# SPDX-License-Identifier: Apache-2.0
"""Text answered with text: an encoder-decoder that translates, sums up, or does what its prompt says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_bundle.builder import generation
from genai_bundle.builder.checkpoint import Checkpoint, plain_request
from genai_bundle.builder.kinds import Evidence
from genai_bundle.builder.parity import TOLERANCE

if TYPE_CHECKING:
    from genai_bundle.builder.exporters import Export
    from genai_bundle.builder.parity import Array
    from genai_bundle.builder.reference_seq2seq import Generated
    from genai_bundle.writer import Source

STEPS = 24
"""Cached steps of each answer: more than the 16 that a proof needs."""


def matches(config: Mapping[str, Any]) -> bool:
    """An encoder-decoder over one vocabulary or two. Speech and pictures have encoders of another kind."""
    named = config.get("architectures") or ["ForConditionalGeneration"]
    return (
        bool(config.get("is_encoder_decoder"))
        and "num_mel_bins" not in config
        and any(str(name).endswith(("ForConditionalGeneration", "MTModel")) for name in named)
    )


def exporters() -> Mapping[str, Callable[[Checkpoint], Export]]:
    return {"transformers": _export}


def _export(checkpoint: Checkpoint) -> Export:
    from genai_bundle.builder.exporters.seq2seq import export_text

    start = len(generation.start_tokens(checkpoint))
    return generation.with_rules(export_text(checkpoint), generation.rules(checkpoint, start))


def ask(checkpoint: Checkpoint) -> Evidence:
    from transformers import AutoModelForSeq2SeqLM

    from genai_bundle.builder import parity_seq2seq
    from genai_bundle.builder.golden import golden_prompts
    from genai_bundle.builder.prove import prove_graphs
    from genai_bundle.builder.reference import reference_name
    from genai_bundle.builder.reference_seq2seq import EncoderDecoder

    model = EncoderDecoder(checkpoint, AutoModelForSeq2SeqLM)
    start = generation.start_tokens(checkpoint)
    answers, tests = [], []
    for prompt in golden_prompts(checkpoint, STEPS):
        heard = {"input_ids": np.array(prompt.ids)}
        answers.append(model.answer(heard, start, STEPS))
        told = model.generate(heard, start, STEPS, **generation.OFF)
        tests += golden_test(prompt.inputs, told, answers[-1].logits, checkpoint.generation)
    proof = {
        "reference": reference_name(),
        "steps": STEPS,
        "max_abs": TOLERANCE,
        "checks": ["hidden states", "prefill", "cached steps", "pieces", "padded batch of two", "greedy tokens"],
    }

    def prove(path: Path, backend: str | None) -> Mapping[str, float]:
        adapter = checkpoint.adapter_name
        return prove_graphs(path, lambda graphs: parity_seq2seq.check(graphs, answers), backend, adapter)

    return Evidence(tests, proof, prove, generation.dropped(checkpoint))


def golden_test(
    inputs: Mapping[str, Any], generated: Generated, logits: Array, defaults: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The manifest's test of one request: the tokens up to the first that leads too narrowly; none where that is 0."""
    from genai_bundle.builder.fast import fast_bound
    from genai_bundle.builder.golden import MARGIN

    tokens = generated.sure(MARGIN)
    options = plain_request(defaults, len(tokens))
    if not tokens:
        return []
    test = {"in": {**inputs, **options}, "out": {"tokens": [tokens]}, "compare": "tokens"}
    return [{**test, "fast": fast_bound(logits)}]


def document(checkpoint: Checkpoint, export: Export, graphs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    start = generation.start_tokens(checkpoint)
    encode = [
        {"run": "text.encode@1", "in": {"text": "prompt"}, "out": {"ids": "ids"}},
        {
            "run": "encoder", "in": {"input_ids": "ids"}, "with": {"attention_mask": [[1]]},
            "out": {"last_hidden_state": "hidden"},
        },
    ]  # fmt: skip
    prompt = {"type": "text", "description": "The text to answer, in the form that the model was trained on."}
    return {
        "task": "text-to-text",
        "graphs": graphs,
        "inputs": {"prompt": prompt, "start": start_input(start)},
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}, "text": {"type": "text", "dims": ["T*"]}},
        "state": states(export, checkpoint.config.get("max_position_embeddings")),
        "steps": [*encode, *answer_steps(export)],
        "text": {"tokenizer": "tokenizer.json", "eos": list(checkpoint.text.eos)},
        "generation": generation.defaults(checkpoint, len(start)),
    }


def start_input(start: list[int]) -> dict[str, Any]:
    return {
        "type": "i64", "dims": [1, "S"], "default": [start],
        "description": "The token ids that the answer begins with; they are not in the outputs.",
    }  # fmt: skip


def states(export: Export, capacity: int | None) -> dict[str, Any]:
    """The export's states; positions that are looked up in a table end with it."""
    limit = {} if capacity is None else {"capacity": capacity}
    return {name: {**entry, **(limit if entry["update"] == "append" else {})} for name, entry in export.state.items()}


def answer_steps(export: Export, *, heard: bool = False) -> list[dict[str, Any]]:
    """From `hidden` and the first tokens `start` to the answer.

    The first run of the decoder hears the hidden states, every later one none of them: what it needs is in its cache.
    `heard`: a run before these steps has heard them already.
    """
    ports = {str(value.name): value for value in export.graphs["decoder"].graph.inputs}
    width = int(ports["encoder_hidden_states"].shape[2])
    nothing = {"run": "zeros@1", "with": {"shape": [1, 0, width]}, "out": {"y": "nothing"}}
    feeds = {"input_ids": "start", "encoder_hidden_states": "nothing" if heard else "heard"}
    if "encoder_attention_mask" in ports:
        feeds["encoder_attention_mask"] = "cross.mask"
    before: list[dict[str, Any]] = [nothing] if heard else []
    do: list[dict[str, Any]] = [{"run": "decoder", "in": feeds, "out": {"logits": "logits"}}]
    do += [] if heard else [nothing]
    carry: dict[str, Any] = {"start": "token", **({} if heard else {"heard": ["hidden", "nothing"]})}
    emit = {"tokens": "token", "text": "text.decode@1"}
    scores = "logits"
    if "suppress" in export.graphs:
        before.append({"run": "zeros@1", "with": {"shape": [], "dtype": "i64"}, "out": {"y": "first"}})
        feeds = {"logits": "logits", "step": "step"}
        do.append({"run": "suppress", "in": feeds, "out": {"scores": "scores", "next": "next"}})
        carry["step"], scores = ["first", "next"], "scores"
    return [*before, {"generate": {"carry": carry, "do": do, "logits": scores, "emit": emit}}]


def members(checkpoint: Checkpoint) -> Mapping[str, Source]:
    return {"tokenizer.json": checkpoint.text.tokenizer}
