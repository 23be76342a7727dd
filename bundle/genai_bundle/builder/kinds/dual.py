# SPDX-License-Identifier: Apache-2.0
"""Pictures and texts in one space: a vector of either, and how well a text describes a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.kinds import Evidence
from genai_bundle.builder.parity import TOLERANCE
from genai_bundle.builder.preprocess import read_processor

if TYPE_CHECKING:
    from genai_bundle.builder.exporters import Export
    from genai_bundle.builder.parity_dual import Pair
    from genai_bundle.writer import Source

PICTURES = ((60, 90), (150, 110))
"""Height and width of the golden pictures; the second is upright."""

PICTURE = "golden/picture-{}.png"


def matches(config: Mapping[str, Any]) -> bool:
    """Two towers that end in one space, each through a projection of its own."""
    name = str((config.get("architectures") or [""])[0])
    return name.endswith("Model") and {"text_config", "vision_config", "projection_dim"} <= config.keys()


def exporters() -> Mapping[str, Callable[[Checkpoint], Export]]:
    return {"transformers": _export}


def _export(checkpoint: Checkpoint) -> Export:
    from genai_bundle.builder.exporters.encoder import export_dual
    from genai_bundle.builder.preprocess import make_preprocess

    made = export_dual(checkpoint)
    return replace(made, graphs={**made.graphs, "preprocess": make_preprocess(read_processor(checkpoint.path))})


def ask(checkpoint: Checkpoint) -> Evidence:
    from genai_bundle.builder import parity_dual
    from genai_bundle.builder.golden import golden_prompts
    from genai_bundle.builder.picture import picture
    from genai_bundle.builder.prove import prove_graphs
    from genai_bundle.builder.reference import reference_name
    from genai_bundle.builder.reference_dual import look

    prompts = golden_prompts(checkpoint, 0)
    pictures = [picture(*size, seed) for seed, size in enumerate(PICTURES)]
    pairs = look(checkpoint, [prompt.ids for prompt in prompts], pictures)
    tests = [
        _test(prompt.inputs["prompt"], index % len(pictures), pair)
        for index, (prompt, pair) in enumerate(zip(prompts, pairs, strict=True))
    ]
    proof = {
        "reference": reference_name(), "max_abs": TOLERANCE,
        "checks": ["one text", "padded batch of two", "batch of pictures", "pixels", "logits"],
    }  # fmt: skip

    def prove(path: Path, backend: str | None) -> Mapping[str, float]:
        adapter = checkpoint.adapter_name
        return prove_graphs(path, lambda graphs: parity_dual.check(graphs, pairs), backend, adapter)

    return Evidence(tests, proof, prove, files=[read_processor(checkpoint.path).file])


def _test(text: str, number: int, pair: Pair) -> dict[str, Any]:
    out = {"text_embedding": pair.text[None], "image_embedding": pair.image[None], "logits_per_image": pair.logits}
    return {
        "in": {"text": text, "image": {"file": PICTURE.format(number)}},
        "out": {name: array.astype("float64").round(5).tolist() for name, array in out.items()},
        "compare": {"abs": TOLERANCE, "rel": TOLERANCE},
    }


def document(_: Checkpoint, export: Export, graphs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    width = next(int(value.shape[-1]) for value in export.graphs["text"].graph.outputs)
    placed = {name: {**entry, "place": "host"} if name == "preprocess" else entry for name, entry in graphs.items()}
    encode = [
        {"run": "text.encode@1", "in": {"text": "text"}, "out": {"ids": "ids"}},
        {
            "run": "text", "in": {"input_ids": "ids"}, "with": {"attention_mask": [[1]]},
            "out": {"embedding": "described"},
        },
        {"emit": {"text_embedding": "described"}},
    ]  # fmt: skip
    compare = [
        {"run": "compare", "in": {"image": "seen", "text": "described"}, "out": {"logits_per_image": "logits"}},
        {"emit": {"logits_per_image": "logits"}},
    ]
    see = [
        {"run": "image.decode@1", "in": {"bytes": "image"}, "out": {"pixels": "pixels"}},
        {"run": "preprocess", "in": {"pixels": "pixels"}, "out": {"pixel_values": "values"}},
        {"run": "vision", "in": {"pixel_values": "values"}, "out": {"embedding": "seen"}},
        {"emit": {"image_embedding": "seen"}},
        {"if": "text", "then": compare},
    ]
    nothing = {"run": "zeros@1", "with": {"shape": [0, width]}, "out": {"y": "described"}}
    vector = {"type": "f32", "dims": [1, width]}
    return {
        "task": "feature-extraction",
        "graphs": placed,
        "inputs": {
            "text": {"type": "text", "optional": True, "description": "A text to encode."},
            "image": {"type": "bytes", "optional": True, "description": "A picture to encode: a PNG or JPEG file."},
        },
        "outputs": {
            "text_embedding": {**vector, "description": "The text's vector, of length 1."},
            "image_embedding": {**vector, "description": "The picture's vector, of length 1."},
            "logits_per_image": {
                "type": "f32", "dims": [1, 1],
                "description": "With both given, how well the text describes the picture; compare it among texts.",
            },
        },
        "steps": [
            {"if": "text", "then": encode, "else": [nothing], "out": ["described"]},
            {"if": "image", "then": see},
        ],
        "text": {"tokenizer": "tokenizer.json"},
    }  # fmt: skip


def members(checkpoint: Checkpoint) -> Mapping[str, Source]:
    from genai_bundle.builder.picture import picture, png

    pictures = {PICTURE.format(seed): png(picture(*size, seed)) for seed, size in enumerate(PICTURES)}
    return {"tokenizer.json": checkpoint.text.tokenizer, **pictures}
