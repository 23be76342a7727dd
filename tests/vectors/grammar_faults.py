# SPDX-License-Identifier: Apache-2.0
"""One broken document, or more, for each rule of the pipeline's grammar and of the graphs' ports (P*, G20 on)."""

from __future__ import annotations

from collections.abc import Iterator

from .manifest_faults import GENERATE, KV, LOOP, RUN, fault
from .manifests import DECODER, RING, Case, by_name, graph


def faults() -> Iterator[Case]:
    """The invalid cases of these rules."""
    for group in (_names, _ops, _flow, _outputs, _states, _rest, _graphs):
        yield from group()


def _names() -> Iterator[Case]:
    """Which names are visible where."""
    yield fault("P1", "undefined", "A misspelt value", "small", ("steps", 0, "in", "x", "xs"))
    yield fault("P1", "out-of-body", "A value of a body, read after it", "loops", ("steps", 1, "emit", "last", "after"))
    run, emit = by_name("small").manifest["steps"]
    yield fault("P1", "too-early", "A value that a later step assigns", "small", ("steps", [emit, run]))
    yield fault("P2", "assigned-twice", "A name is assigned twice", "small", ("steps", 0, "out", "y", "x"))
    yield fault("P2", "shadow", "A body assigns an outer name", "loops", (*LOOP, "do", 2, "out", "y", "rounds"))
    yield fault(
        "P2",
        "own-token",
        "The body assigns what generate draws",
        "chat",
        (*RUN, "out", "logits", "token"),
        (*GENERATE, "logits", "token"),
    )
    yield fault(
        "P2",
        "carry-known",
        "A new carried name that is known already",
        "loops",
        (*LOOP, "carry", "x", ["rounds", "after"]),
    )
    yield fault("P3", "no-graph", "A misspelt graph", "small", ("steps", 0, "run", "dubble"))


def _ops() -> Iterator[Case]:
    """Host ops."""
    encode = ("steps", 0, "else", 0)
    yield fault("P4", "unknown-op", "An op of the future", "chat", (*encode, "run", "text.encode@2"))
    yield fault("P5", "op-missing", "A required input is missing", "chat", (*encode, "in", {}))
    yield fault("P5", "op-input", "An input that the op does not know", "chat", (*encode, "in", "speed", "prompt"))
    yield fault("P5", "op-output", "An output that the op does not have", "chat", (*encode, "out", {"tokens": "ids"}))
    yield fault("P5", "op-literal", "A text where a bool belongs", "chat", (*encode, "with", {"add_special": "no"}))
    yield fault(
        "P6",
        "kind",
        "A text where messages belong",
        "chat",
        ("steps", 0, "then", 0, "in", "messages", "prompt"),
        ("inputs", "prompt", "optional", ...),
    )
    yield fault("P6", "number-until", "A number as the end of a loop", "loops", (*LOOP, "until", "i"))
    yield fault("P6", "max-float", "A loop that ends after 2.5 rounds", "loops", (*LOOP, "max", "temperature"))
    yield fault("P7", "bound-twice", "A port bound by `in` and by `with`", "small", ("steps", 0, "with", {"x": [1]}))
    yield fault(
        "P23",
        "no-tokenizer",
        "An op that tokenizes, and no `text`",
        "chat",
        ("text", ...),
        members=dict.fromkeys(("tokenizer.json", "chat.jinja")),
    )
    yield fault(
        "P23",
        "no-template",
        "Messages without a template",
        "chat",
        ("text", "template", ...),
        members={"chat.jinja": None},
    )


def _flow() -> Iterator[Case]:
    """Loops, branches, generate."""
    yield fault("P9", "carry-next", "The body does not assign the next value", "loops", (*LOOP, "carry", "x", "later"))
    yield fault("P9", "carry-self", "A value that is carried to itself", "loops", (*LOOP, "carry", "x", "x"))
    yield fault("P10", "reset", "A state that does not exist is emptied", "states", (*LOOP, "reset", ["cache"]))
    yield fault("P10", "reset-read", "A borrowed state is emptied", "states", (*LOOP, "reset", ["seen"]))
    yield fault("P11", "if-out", "One branch does not assign a name", "chat", ("steps", 0, "else", 0, "out", {}))
    yield fault("P11", "no-else", "A name leaves an if without else", "chat", ("steps", 0, "else", []))
    yield fault("P12", "if-number", "A number as a condition", "media", ("steps", 2, "if", "seed"))
    yield fault(
        "P12",
        "optional-bool",
        "A bool that is optional",
        "media",
        ("inputs", "loud", {"type": "bool", "optional": True}),
    )
    yield fault(
        "P13", "optional-read", "An optional input, read outside of an if", "small", ("inputs", "x", "optional", True)
    )
    yield fault("P13", "optional-else", "An input, read where it is missing", "chat", ("steps", 0, "if", "prompt"))
    yield fault("P17", "no-token", "A generate that carries no token", "chat", (*GENERATE, "carry", "ids", "logits"))
    two = {"ids": "token", "again": ["ids", "token"]}
    yield fault("P17", "two-tokens", "A generate that carries two tokens", "chat", (*GENERATE, "carry", two))


def _outputs() -> Iterator[Case]:
    yield fault("P14", "no-output", "A misspelt output", "small", ("steps", 1, "emit", {"z": "twice"}))
    yield fault("P15", "fixed-in-loop", "A fixed output in a loop", "loops", ("outputs", "all", "dims", [1]))
    run, emit = by_name("small").manifest["steps"]
    yield fault("P15", "set-twice", "A fixed output is set twice", "small", ("steps", [run, emit, emit]))
    yield fault("P15", "fixed-tokens", "Tokens that cannot grow", "chat", ("outputs", "tokens", "dims", [1, 1]))
    yield fault("P16", "never", "An output that no step emits", "small", ("outputs", "z", {"type": "f32"}))
    yield fault(
        "P6",
        "text-as-number",
        "A text goes to an output of numbers",
        "chat",
        (*GENERATE, "emit", "tokens", "text.decode@1"),
    )


def _states() -> Iterator[Case]:
    yield fault(
        "P8",
        "foreign-field",
        "A field of another graph's state",
        "states",
        (*LOOP, "do", 1, "in", {"past": "kept.len"}),
    )
    yield fault("P8", "no-state", "A field of no state", "chat", (*RUN, "in", "attention_mask", "cache.mask"))
    yield fault(
        "P8",
        "no-capacity",
        "The capacity of a state without one",
        "states",
        (*LOOP, "do", 0, "in", "n", "kept.capacity"),
    )
    yield fault("P19", "ring-window", "A ring without a window", "ring", ("state", "kept", "window", ...))
    yield fault("P19", "small-ring", "A ring smaller than its window", "ring", ("state", "kept", "capacity", 3))
    yield fault("P19", "scatter-capacity", "A buffer without a size", "states", ("state", "kept", "update", "scatter"))
    yield fault("P19", "append-window", "A window that has no effect", "chat", (*KV, "window", 8))
    yield fault("P19", "variant-capacity", "A variant's buffer without a size", "chat", (*KV, "capacity", ...))
    yield fault("P20", "state-graph", "A state of no graph", "states", ("state", "kept", "graph", "stop"))
    yield fault("P20", "of", "A borrowed state that does not exist", "states", ("state", "seen", "of", "cache"))
    yield fault("P20", "holes", "Placeholders that differ", "chat", (*KV, "ports", {"past.{n}.{h}": "present.{n}.key"}))
    yield fault("P21", "tokens-unbound", "A run that does not feed the tokens", "states", (*LOOP, "do", 0, "in", {}))
    variant = ("graphs", "decoder", "variants", 0)
    yield fault(
        "P22", "variant-state", "A variant changes an unknown state", "chat", (*variant, "state", {"cache": {}})
    )
    twice = [by_name("chat").manifest["graphs"]["decoder"]["variants"][0]] * 2
    yield fault("P22", "variant-twice", "Two variants of one name", "chat", ("graphs", "decoder", "variants", twice))


def _rest() -> Iterator[Case]:
    """Members, defaults, golden vectors."""
    yield fault("P18", "idle-graph", "A graph that never runs", "small", ("graphs", "spare", {"file": "double.onnx"}))
    yield fault("P24", "not-listed", "A tokenizer that is not listed", "chat", ("text", "tokenizer", "words.json"))
    yield fault("P25", "unused", "A member that nothing uses", "small", members={"extra.bin": b"?"})
    yield fault("P26", "default", "A text as the default of a number", "loops", ("inputs", "rounds", "default", "two"))
    yield fault("P26", "bytes-default", "Bytes have no form in JSON", "media", ("inputs", "picture", "default", "AA=="))
    yield fault("P27", "test-input", "A test of an unknown input", "chat", ("tests", 0, "in", "question", "why"))
    yield fault("P27", "test-output", "A test of an unknown output", "chat", ("tests", 0, "out", "answer", "so"))
    yield fault("P27", "test-required", "A test without a required input", "loops", ("tests", 0, "in", {}))
    yield fault("P28", "test-dims", "A result of the wrong rank", "chat", ("tests", 0, "out", "tokens", [2, 2]))
    yield fault("P28", "test-option", "A test of a negative temperature", "chat", ("tests", 0, "in", "temperature", -1))
    yield fault(
        "P29",
        "option-type",
        "An input that hides an option",
        "media",
        ("inputs", "seed", {"type": "text", "default": ""}),
    )
    yield fault(
        "P29", "stop-input", "An input named stop", "media", ("inputs", "stop", {"type": "text", "default": ""})
    )


def _graphs() -> Iterator[Case]:
    """Ports."""
    yield fault("G20", "port", "A misspelt input port", "small", ("steps", 0, "in", {"x": "x", "z": "x"}))
    yield fault("G20", "output-port", "A misspelt output port", "small", ("steps", 0, "out", {"z": "twice"}))
    wide = graph("double (float[N] x, float bias) => (float[N] y) { y = Add (x, bias) }")
    yield fault("G21", "unbound", "An input that nothing feeds", "small", members={"double.onnx": wide})
    yield fault("G21", "variant-unbound", "A variant's input that nothing feeds", "chat", (*RUN, "in", "seqlens", ...))
    past = ("state", "kept", "tokens", "past"), (*LOOP, "do", 0, "in", {"x": "x", "past": "x"})
    yield fault("G22", "fed-twice", "A port that a step and a state feed", "states", *past)
    yield fault(
        "G23", "pattern", "A pattern that matches nothing", "chat", (*KV, "ports", {"cache.{n}": "present.{n}"})
    )
    other = graph(DECODER.replace('float[1,1,T,2] "present', 'float[T,2] "present'))
    yield fault("G24", "pair-rank", "Past and present of different ranks", "chat", members={"decoder.onnx": other})
    yield fault("G24", "axis", "An axis that the past does not have", "ring", ("state", "kept", "axis", 2))
    yield fault(
        "G25",
        "tokens-port",
        "Tokens are counted on an axis that is not there",
        "ring",
        ("state", "kept", "tokens", "at"),
        members={"step.onnx": graph(RING)},
    )
    texts = graph("double (string[N] x) => (string[N] y) { y = Identity (x) }")
    variants = [{"name": "t", "when": {"backend": "any"}, "file": "texts.onnx"}]
    yield fault(
        "G26",
        "text-variant",
        "A text in a variant, a tensor in the default",
        "small",
        ("graphs", "double", "variants", variants),
        members={"texts.onnx": texts},
    )
    yield fault(
        "P6", "text-port", "Numbers for a port of texts", "small", layer="graph", members={"double.onnx": texts}
    )
