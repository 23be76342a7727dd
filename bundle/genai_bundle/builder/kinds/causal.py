# SPDX-License-Identifier: Apache-2.0
"""Text continued token by token: a causal language model with its tokenizer and, often, a chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle.builder.checkpoint import UNLIMITED, Checkpoint
from genai_bundle.builder.kinds import Evidence
from genai_bundle.builder.parity import TOLERANCE
from genai_bundle.builder.reply import reply_of

if TYPE_CHECKING:
    from genai_bundle.builder.exporters import Export
    from genai_bundle.writer import Source

STEPS = 24
"""Cached steps of each: more than the 16 that a proof needs."""


BATCH = "batch of two rows, of different length where the graph has a mask or lengths"


def matches(config: Mapping[str, Any]) -> bool:
    """A config without `architectures` is taken for one, as transformers' AutoModelForCausalLM would.

    So is a model of texts and pictures with a language model inside: what is built of it takes texts.
    """
    named = [str(name) for name in config.get("architectures") or ["ForCausalLM"]]
    endings = ["ForCausalLM", "LMHeadModel"]
    if isinstance(config.get("text_config"), Mapping) and isinstance(config.get("vision_config"), Mapping):
        endings.append("ForConditionalGeneration")
    return not config.get("is_encoder_decoder") and any(name.endswith(tuple(endings)) for name in named)


HEAD, SEEN, OWN = "head", "hidden_before", "own_hidden"


def exporters() -> Mapping[str, Callable[[Checkpoint], Export]]:
    return {"transformers": _whole, "mobius": _mobius, "transformers-steps": _steps_only}


def _whole(checkpoint: Checkpoint) -> Export:
    from genai_bundle.builder.exporters import transformers

    return transformers.export_decoder(checkpoint)


def _mobius(checkpoint: Checkpoint) -> Export:
    from genai_bundle.builder.exporters import mobius

    return mobius.export_decoder(checkpoint)


def _steps_only(checkpoint: Checkpoint) -> Export:
    from genai_bundle.builder.exporters import transformers

    return transformers.export_steps(checkpoint)


def ask(checkpoint: Checkpoint) -> Evidence:
    from genai_bundle.builder import parity_head
    from genai_bundle.builder.golden import golden_prompts, golden_tests, questions, turn
    from genai_bundle.builder.prove import prove_decoder
    from genai_bundle.builder.prove_head import prove_head
    from genai_bundle.builder.reference import reference_greedy, reference_name
    from genai_bundle.builder.reference_head import ask_head

    prompts = golden_prompts(checkpoint, STEPS)
    more = questions(checkpoint, prompts, STEPS)
    alone = checkpoint.adapter is None
    goldens = reference_greedy(checkpoint, [*(prompt.ids for prompt in prompts), *more.values()], STEPS)
    tests = golden_tests(prompts, goldens[: len(prompts)], checkpoint.text.eos, checkpoint.generation)
    guessed = ask_head(checkpoint, [golden.text for golden in goldens[: len(prompts)]]) if alone else []
    proof = {
        "reference": reference_name(),
        "steps": STEPS,
        "max_abs": TOLERANCE,
        "checks": ["prefill", "cached steps", "pieces", BATCH, *more, "greedy tokens"],
    }

    def measure(text: str | None, tell: Callable[[str], None]) -> Mapping[str, str]:
        from genai_bundle.builder.effect import effect

        return effect(checkpoint, goldens, text, tell)

    def prove(path: Path, backend: str | None) -> Mapping[str, float]:
        found = prove_decoder(path, "decoder", goldens, backend, turn(checkpoint.config), checkpoint.adapter_name)
        if guessed:
            found |= {f"{HEAD}, {form}": gap for form, gap in prove_head(path, guessed, backend).items()}
        return found

    head = {"reference": reference_name(), "max_abs": TOLERANCE, "checks": list(parity_head.CHECKS)} if guessed else {}
    return Evidence(tests, proof, prove, effect=measure, head=head)


def document(checkpoint: Checkpoint, export: Export, graphs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    text = checkpoint.text
    capacity = {"capacity": checkpoint.context} if checkpoint.context < UNLIMITED else {}
    return {
        "task": "text-generation",
        "graphs": graphs,
        "inputs": _inputs(text.template is not None),
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}, "text": {"type": "text", "dims": ["T*"]}},
        "state": {
            name: {**entry, **(capacity if entry["update"] == "append" else {})} for name, entry in export.state.items()
        },
        "steps": _steps(text.template is not None, export, graphs),
        "text": {
            "tokenizer": "tokenizer.json",
            **({"template": "chat_template.jinja"} if text.template is not None else {}),
            "eos": list(text.eos),
            "special": dict(text.special),
            **reply_of(text.template),
        },
        "generation": dict(checkpoint.generation),
    }


def members(checkpoint: Checkpoint) -> Mapping[str, Source]:
    found: dict[str, Source] = {"tokenizer.json": checkpoint.text.tokenizer}
    if checkpoint.text.template is not None:
        found["chat_template.jinja"] = checkpoint.text.template.encode()
    return found


def _has_shared(decoder: Mapping[str, Any]) -> bool:
    """Whether a variant takes its cache as a shared buffer, and with it the lengths of the rows."""
    return any("state" in variant for variant in decoder.get("variants", ()))


def _inputs(chat: bool) -> dict[str, Any]:
    prompt: dict[str, Any] = {"type": "text", "description": "The text to continue."}
    if not chat:
        return {"prompt": prompt}
    messages = {"type": "messages", "optional": True, "description": "A conversation; takes the place of the prompt."}
    return {"prompt": prompt | {"optional": True}, "messages": messages}


def _feeds(export: Export, graph: str, *, shared: bool) -> dict[str, str]:
    """What a decoder's ports are given: the ids, and of its first state's fields those that the graph or its variant
    has a port for."""
    state = next(name for name, entry in export.state.items() if entry["graph"] == graph)
    fields = {"position_ids": "positions", "attention_mask": "mask"}
    ports = {str(value.name) for value in export.graphs[graph].graph.inputs}
    if shared:
        fields |= {"seqlens_k": "last", "total_sequence_length": "total"}
        ports |= fields.keys()
    return {"input_ids": "ids"} | {port: f"{state}.{field}" for port, field in fields.items() if port in ports}


def _steps(chat: bool, export: Export, graphs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    encode = {"run": "text.encode@1", "in": {"text": "prompt"}, "out": {"ids": "ids"}}
    render = {"run": "text.chat@1", "in": {"messages": "messages"}, "out": {"ids": "ids"}}
    begin = {"if": "messages", "then": [render], "else": [encode], "out": ["ids"]} if chat else encode
    run: dict[str, dict[str, Any]] = {
        name: {
            "run": name,
            "in": _feeds(export, name, shared=_has_shared(graphs[name])),
            "with": {"num_logits": 1},
            "out": {"logits": "logits"},
        }
        for name in export.graphs
    }
    generate: dict[str, Any] = {
        "carry": {"ids": "token"},
        "do": [run["decoder"]],
        "logits": "logits",
        "emit": {"tokens": "token", "text": "text.decode@1"},
    }
    if HEAD in run:
        run["decoder"]["out"]["hidden"] = "hidden"
        run[HEAD]["in"]["hidden_before"] = SEEN
        run[HEAD]["out"]["hidden"] = OWN
        generate["draft"] = {"carry": {SEEN: ["hidden", OWN]}, "do": [run[HEAD]], "logits": "logits"}
    return [begin, {"generate": generate}]
