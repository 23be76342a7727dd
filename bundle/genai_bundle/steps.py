# SPDX-License-Identifier: Apache-2.0
"""The steps of a pipeline as records. What the names in them mean is `check`'s question."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .document import Node
from .names import MAX_PORT, NAME, OP, REFERENCE
from .records import Draft, Emit, Generate, If, Json, Loop, Run, Step

DRAWN = "token"
"""The value that a `generate` draws in each iteration."""

DECODED = "text.decode@1"
"""What a `generate` emits as text."""

_PORT = re.compile(rf"(?s).{{1,{MAX_PORT}}}")


def parse_steps(node: Node) -> tuple[Step, ...]:
    """A list of steps."""
    return tuple(_step(item) for item in node.items())


def port_entries(node: Node, least: int = 0) -> dict[str, Node]:
    """An object whose keys are ports; ONNX lets a port have any name."""
    return node.entries(_PORT, least)


def port_name(node: Node) -> str:
    """The name of a port."""
    return node.match(_PORT, f"a port's name of 1 to {MAX_PORT} characters")


def _step(node: Node) -> Step:
    kinds: Mapping[str, Callable[[Node], Step]] = {
        "run": _run,
        "loop": _loop,
        "if": _if,
        "emit": _emit,
        "generate": _generate,
    }
    if not isinstance(node.value, dict):
        node.fail("a step, an object")
    found = [kind for kind in kinds if kind in node.value]
    if len(found) != 1:
        node.refuse(f"a step is one of {', '.join(kinds)}; this is {' and '.join(found) or 'none of them'}", "M21")
    return kinds[found[0]](node)


def _run(node: Node) -> Run:
    keys = node.object(("run",), ("in", "with", "out"))
    target = keys["run"]
    pattern, expected = (OP, "an op such as sample@1") if "@" in str(target.value) else (NAME, "a graph or an op")
    inputs, literals, outputs = (port_entries(keys[key]) if key in keys else {} for key in ("in", "with", "out"))
    return Run(
        target=target.match(pattern, expected, "M10"),
        inputs={port: value.match(REFERENCE, "a name, or state.field", "M22") for port, value in inputs.items()},
        literals={port: _literal(value) for port, value in literals.items()},
        outputs={port: value.name() for port, value in outputs.items()},
        where=node.path,
    )


def _literal(node: Node) -> Json:
    _shape(node)
    return node.value


def _shape(node: Node) -> tuple[int, ...]:
    """The dims of a literal (rule M23)."""
    if isinstance(node.value, bool | int | float | str):
        return ()
    if not isinstance(node.value, list):
        node.fail("a bool, a number, a text, or lists of these", "M23")
    shapes = [_shape(item) for item in node.items()]
    if any(shape != shapes[0] for shape in shapes):
        node.refuse("the items of this list differ in their dims", "M23")
    return (len(shapes), *(shapes[0] if shapes else ()))


def _loop(step: Node) -> Loop:
    node = step.object(("loop",))["loop"]
    keys = node.object(("do",), ("carry", "max", "index", "while", "until", "reset"))
    if not {"max", "while", "until"} & keys.keys():
        node.refuse("a loop without an end: give max, while or until", "M24")
    if {"while", "until"} <= keys.keys():
        node.refuse("a loop has while or until, not both", "M25")
    limit = keys.get("max")
    return Loop(
        carry=_carry(keys["carry"]) if "carry" in keys else {},
        max=None if limit is None else limit.name() if isinstance(limit.value, str) else limit.integer(),
        index=keys["index"].name() if "index" in keys else None,
        while_=keys["while"].name() if "while" in keys else None,
        until=keys["until"].name() if "until" in keys else None,
        reset=tuple(state.name() for state in keys["reset"].items()) if "reset" in keys else (),
        do=parse_steps(keys["do"]),
        where=step.path,
    )


def _carry(node: Node) -> dict[str, tuple[str, str]]:
    carried: dict[str, tuple[str, str]] = {}
    for name, value in node.entries().items():
        if isinstance(value.value, list):
            initial, after = (item.name() for item in value.items(2, 2))
            carried[name] = (initial, after)
        else:
            carried[name] = (name, value.name())
    return carried


def _if(node: Node) -> If:
    keys = node.object(("if", "then"), ("else", "out"))
    return If(
        cond=keys["if"].name(),
        then=parse_steps(keys["then"]),
        orelse=parse_steps(keys["else"]) if "else" in keys else (),
        out=tuple(name.name() for name in keys["out"].items()) if "out" in keys else (),
        where=node.path,
    )


def _emit(node: Node) -> Emit:
    values = node.object(("emit",))["emit"].entries(least=1)
    return Emit({output: value.name() for output, value in values.items()}, node.path)


def _generate(step: Node) -> Generate:
    keys = step.object(("generate",))["generate"].object(("carry", "do", "logits"), ("emit", "draft"))
    emitted = keys["emit"].entries() if "emit" in keys else {}
    return Generate(
        carry=_carry(keys["carry"]),
        do=parse_steps(keys["do"]),
        logits=keys["logits"].name(),
        emit={output: source.choice((DRAWN, DECODED)) for output, source in emitted.items()},
        where=step.path,
        draft=_draft(keys["draft"]) if "draft" in keys else None,
    )


def _draft(node: Node) -> Draft:
    keys = node.object(("do", "logits"), ("carry",))
    steps = []
    for item, step in zip(keys["do"].items(), parse_steps(keys["do"]), strict=True):
        if not isinstance(step, Run) or step.is_op:
            item.refuse("a draft only runs graphs", "M27")
        steps.append(step)
    carried = keys["carry"].entries() if "carry" in keys else {}
    pairs = {name: [item.name() for item in value.items(2, 2)] for name, value in carried.items()}
    carry = {name: (given, own) for name, (given, own) in pairs.items()}
    return Draft(tuple(steps), keys["logits"].name(), node.path, carry)
