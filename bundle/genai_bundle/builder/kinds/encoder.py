# SPDX-License-Identifier: Apache-2.0
"""Text understood: hidden states, one vector for a text, or the scores of a head that classifies it or its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.kinds import Evidence
from genai_bundle.builder.parity import TOLERANCE
from genai_bundle.builder.pooling import read_pooling

if TYPE_CHECKING:
    from genai_bundle.builder.exporters import Export
    from genai_bundle.writer import Source

HEADS = {
    "Model": "feature-extraction",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}
"""What a class of transformers ends with, and the task of such a model."""


def matches(config: Mapping[str, Any]) -> bool:
    return _task(config) is not None


def _task(config: Mapping[str, Any]) -> str | None:
    """None where it is no encoder of texts alone."""
    name = str((config.get("architectures") or [""])[0])
    other = {"vision_config", "audio_config", "num_mel_bins", "num_channels", "num_codebooks"} & config.keys()
    if config.get("is_encoder_decoder") or config.get("is_decoder") or other or "vocab_size" not in config:
        return None
    return next((task for end, task in HEADS.items() if name.endswith(end)), None)


def exporters() -> Mapping[str, Callable[[Checkpoint], Export]]:
    return {"transformers": _export}


def _export(checkpoint: Checkpoint) -> Export:
    from genai_bundle.builder.exporters.encoder import export_encoder

    return export_encoder(checkpoint)


def ask(checkpoint: Checkpoint) -> Evidence:
    from genai_bundle.builder import parity_encoder
    from genai_bundle.builder.fast import fast_bound
    from genai_bundle.builder.golden import golden_prompts
    from genai_bundle.builder.prove import prove_graphs
    from genai_bundle.builder.reference import reference_name
    from genai_bundle.builder.reference_encoder import encode

    prompts = golden_prompts(checkpoint, 0)
    texts = encode(checkpoint, [prompt.ids for prompt in prompts])
    tests = [
        {
            "in": {"text": prompt.inputs["prompt"]},
            "out": {name: _rounded(array[None]) for name, array in text.outputs.items() if array.size <= 1024},
            "compare": {"abs": TOLERANCE},
            "fast": max((fast_bound(array) for array in text.outputs.values()), default=0.0),
        }
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    proof = {"reference": reference_name(), "max_abs": TOLERANCE, "checks": ["one text", "padded batch of two"]}

    def prove(path: Path, backend: str | None) -> Mapping[str, float]:
        adapter = checkpoint.adapter_name
        return prove_graphs(path, lambda graphs: parity_encoder.check(graphs["encoder"], texts), backend, adapter)

    pooling = read_pooling(checkpoint.path)
    return Evidence([test for test in tests if test["out"]], proof, prove, files=pooling.files if pooling else ())


def _rounded(array: Any) -> Any:
    return array.astype("float64").round(5).tolist()


def document(checkpoint: Checkpoint, export: Export, graphs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    ports = {value.name: value for value in export.graphs["encoder"].graph.outputs}
    encode = {"run": "text.encode@1", "in": {"text": "text"}, "out": {"ids": "ids"}}
    run = {
        "run": "encoder", "in": {"input_ids": "ids"}, "with": {"attention_mask": [[1]]},
        "out": {name: f"{name}_found" for name in ports},
    }  # fmt: skip
    return {
        "task": _task(checkpoint.config),
        "graphs": graphs,
        "inputs": {"text": {"type": "text", "description": "The text to encode."}},
        "outputs": {name: _output(value, checkpoint) for name, value in ports.items()},
        "steps": [encode, run, {"emit": {name: f"{name}_found" for name in ports}}],
        "text": {"tokenizer": "tokenizer.json"},
    }


def _output(value: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """An output with dims as the port's, for one text."""
    dims = [dim if isinstance(dim, int) else "N" for dim in list(value.shape)[1:]]
    described = {
        "last_hidden_state": "A vector for each token.",
        "pooler_output": "The first token's vector, through the model's own pooling layer.",
        "embedding": "One vector for the text.",
        "logits": _labels(checkpoint),
    }
    return {"type": "f32", "dims": [1, *dims], "description": described[value.name]}


def _labels(checkpoint: Checkpoint) -> str:
    labels = checkpoint.config.get("id2label")
    if checkpoint.config["architectures"][0].endswith("ForMaskedLM") or not isinstance(labels, Mapping):
        return "A number for each entry of the vocabulary."
    return "A number for each of: " + ", ".join(str(label) for label in labels.values()) + "."


def members(checkpoint: Checkpoint) -> Mapping[str, Source]:
    read_pooling(checkpoint.path)  # refused here, before torch starts, where it cannot be followed
    return {"tokenizer.json": checkpoint.text.tokenizer}
