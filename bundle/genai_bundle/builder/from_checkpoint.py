# SPDX-License-Identifier: Apache-2.0
"""A bundle from a Hugging Face checkpoint folder of a causal language model.

    read_checkpoint -> export_decoder -> make_variant -> pack -> reference_greedy -> write_bundle(before_commit=prove)

The order is that of cost and blame: what is wrong with the folder is said before anything runs, and the target keeps
its old content until the new bundle has reproduced the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle import FORMAT_VERSION
from genai_bundle.builder.checkpoint import Checkpoint, read_checkpoint, text_config
from genai_bundle.builder.parity import TOLERANCE
from genai_bundle.errors import SourceError, UsageError
from genai_bundle.writer import Source, write_bundle

if TYPE_CHECKING:
    from genai_bundle.builder.exporters import Export

Progress = Callable[[str], None]

STEPS = 24
"""Cached steps of each: more than the 16 that a proof needs."""

NEEDED = ("torch", "transformers", "onnxscript")

DECODER, VARIANT = "decoder.onnx", "decoder.ort-cpu.onnx"


def build_checkpoint(
    source: Path,
    target: Path,
    *,
    overwrite: bool = False,
    details: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> str:
    """Build the bundle file `target` from the checkpoint folder `source` and return the bundle's id.

    Args:
        details: `name`, `license`, `description`, `version` for the manifest; the name is the folder's by default.
        progress: is told what is done next and, at the end, how close the bundle came.

    Raises:
        SourceError: the folder lacks something or holds something that cannot be built.
        UsageError: the target exists and `overwrite` is false.
        ProofError: the exported graphs do not compute what the model computes; nothing is written.
    """
    tell = progress or (lambda _: None)
    if target.exists() and not overwrite:
        raise UsageError("exists already", where=str(target), hint="Give --force (overwrite=True) to replace it")
    tell("reading the checkpoint")
    checkpoint = read_checkpoint(source)
    _check_installed(source)

    tell("starting torch")  # late: seconds of imports that a wrong folder should not cost
    from genai_bundle.builder.exporters.transformers import export_decoder
    from genai_bundle.builder.golden import golden_prompts, golden_tests
    from genai_bundle.builder.prove import prove_decoder, prove_tests
    from genai_bundle.builder.reference import reference_greedy
    from genai_bundle.builder.variants.ort_gqa import make_variant
    from genai_bundle.builder.weights import pack

    prompts = golden_prompts(checkpoint, STEPS)
    _check_window(checkpoint, max(len(prompt.ids) for prompt in prompts) + STEPS - 1)  # the last token is never run
    tell("exporting")
    export = export_decoder(source, checkpoint.tensors)
    variant, reason = make_variant(export.model)
    tell("rewriting for ONNX Runtime" if variant else f"no variant for ONNX Runtime: {reason}")
    graphs, shards = pack({DECODER: export.model} | ({VARIANT: variant} if variant else {}))
    tell("asking the model itself")
    goldens = reference_greedy(source, [prompt.ids for prompt in prompts], STEPS)
    tests = golden_tests(prompts, goldens, checkpoint.text.eos)
    manifest = make_manifest(checkpoint, export, tests, details or {}, variant=variant is not None)

    def prove(path: Path) -> None:
        tell("proving logits")
        differences = prove_decoder(path, "decoder", goldens)
        tell("proving tokens")
        prove_tests(path)
        tell("proved, largest difference: " + ", ".join(f"{name} {gap:.1e}" for name, gap in differences.items()))

    members: dict[str, Source] = {**graphs, **shards, "tokenizer.json": checkpoint.text.tokenizer}
    if checkpoint.text.template is not None:
        members["chat_template.jinja"] = checkpoint.text.template.encode()
    tell("writing")
    return write_bundle(target, manifest, members, overwrite=overwrite, before_commit=prove)


def _check_installed(source: Path) -> None:
    """Asked once the folder is known to be good: its faults matter whatever is installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        hint = 'Install them with: pip install "genai-bundle[build]"'
        raise UsageError(f"building from a checkpoint needs {', '.join(missing)}", where=str(source), hint=hint)


def make_manifest(
    checkpoint: Checkpoint,
    export: Export,
    tests: Sequence[Mapping[str, Any]],
    details: Mapping[str, str],
    *,
    variant: bool,
) -> dict[str, Any]:
    """The manifest's document, without `files`. Nothing in it depends on when, where or by whom it is built."""
    text = checkpoint.text
    decoder: dict[str, Any] = {"file": DECODER}
    if variant:
        when = {"backend": "onnxruntime", "device": "cpu"}
        decoder["variants"] = [
            {"name": "ort-cpu", "when": when, "file": VARIANT, "state": {"kv": {"update": "shared"}}}
        ]
    manifest = {
        "format": FORMAT_VERSION,
        "name": _name(details.get("name") or checkpoint.path.resolve().name),
        "task": "text-generation",
        "source": _source(checkpoint, export),
        "graphs": {"decoder": decoder},
        "inputs": _inputs(text.template is not None),
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}, "text": {"type": "text", "dims": ["T*"]}},
        "state": {
            "kv": {
                "graph": "decoder",
                "ports": {"past_key_values.{n}.{h}": "present.{n}.{h}"},
                "axis": 2,
                "update": "append",
                "tokens": "input_ids",
                "capacity": checkpoint.context,
            }
        },
        "steps": _steps(text.template is not None, variant),
        "text": {
            "tokenizer": "tokenizer.json",
            **({"template": "chat_template.jinja"} if text.template is not None else {}),
            "eos": list(text.eos),
            "special": dict(text.special),
        },
        "generation": dict(checkpoint.generation),
        "tests": list(tests),
    }
    extra = {key: value for key, value in details.items() if key != "name" and value}
    return manifest | extra


def _inputs(chat: bool) -> dict[str, Any]:
    prompt: dict[str, Any] = {"type": "text", "description": "The text to continue."}
    if not chat:
        return {"prompt": prompt}
    messages = {"type": "messages", "optional": True, "description": "A conversation; takes the place of the prompt."}
    return {"prompt": prompt | {"optional": True}, "messages": messages}


def _steps(chat: bool, variant: bool) -> list[dict[str, Any]]:
    encode = {"run": "text.encode@1", "in": {"text": "prompt"}, "out": {"ids": "ids"}}
    render = {"run": "text.chat@1", "in": {"messages": "messages"}, "out": {"ids": "ids"}}
    begin = {"if": "messages", "then": [render], "else": [encode], "out": ["ids"]} if chat else encode
    feeds = {"input_ids": "ids", "position_ids": "kv.positions", "attention_mask": "kv.mask"}
    if variant:
        feeds |= {"seqlens_k": "kv.last", "total_sequence_length": "kv.total"}
    step = {"run": "decoder", "in": feeds, "with": {"num_logits": 1}, "out": {"logits": "logits"}}
    emit = {"tokens": "token", "text": "text.decode@1"}
    return [begin, {"generate": {"carry": {"ids": "token"}, "do": [step], "logits": "logits", "emit": emit}}]


def _source(checkpoint: Checkpoint, export: Export) -> dict[str, Any]:
    """Where the bundle comes from. Of the proof only what every build repeats: differences vary with the processor."""
    return {
        "exporter": {"name": export.exporter, "version": export.version},
        "files": checkpoint.digests(),
        "proof": {
            "reference": f"transformers {export.version}, float32, eager attention",
            "steps": STEPS,
            "max_abs": TOLERANCE,
            "checks": ["prefill", "cached steps", "pieces", "padded batch of two", "greedy tokens"],
        },
    }


def _check_window(checkpoint: Checkpoint, proved: int) -> None:
    """A window shows only beyond its length; exporters get it silently wrong, so an unproved one is refused."""
    config = text_config(checkpoint.config)
    window = config.get("sliding_window")
    if config.get("use_sliding_window", True) and type(window) is int and proved <= window < checkpoint.context:
        raise SourceError(
            f"sliding_window is {window}, but the proof covers {proved} tokens", where="config.json",
            hint="Models with a longer attention window cannot be built yet",
        )  # fmt: skip


def _name(folder: str) -> str:
    """A bundle's name from a folder's: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-.") or "model"
