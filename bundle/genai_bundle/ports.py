# SPDX-License-Identifier: Apache-2.0
"""What a graph offers to the pipeline: its input and output ports, and how a state's patterns pair them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
"""`{n}`, `{h}` in a state's port patterns; each stands for one or more of `[A-Za-z0-9_]`."""


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a graph.

    dtype: `f32 f16 bf16 f64 i64 i32 i16 i8 u64 u32 u16 u8 bool text`, or another type's ONNX name in lower case.
    dims: a static length, or the name of a symbolic one (`""` where it has none). `()` is a scalar.
    optional: the graph has an initializer of the same name, so that the input may stay unfed.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one graph file, by name, in the graph's order."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]


def match_ports(patterns: Mapping[str, str], ports: Ports) -> dict[str, str]:
    """Pair the state inputs of a graph with the outputs that update them.

    patterns: `{"past.{n}.{h}": "present.{n}.{h}"}`; a placeholder has the same value on both sides.
    Returns {input port: output port} in the graph's input order; an input whose partner is missing is left out.

    For a `read` state, whose patterns lead from this graph's inputs to the owner's past ports, pass
    `Ports(this.inputs, owner.inputs)`.
    """
    pairs: dict[str, str] = {}
    compiled = [(_pattern(past), present) for past, present in patterns.items()]
    for name in ports.inputs:
        for pattern, present in compiled:
            found = pattern.fullmatch(name)
            if found is None:
                continue
            partner = PLACEHOLDER.sub(lambda hole: found[hole[1]], present)  # noqa: B023  used at once
            if partner in ports.outputs:
                pairs.setdefault(name, partner)
    return pairs


def placeholders(pattern: str) -> frozenset[str]:
    """The names of the placeholders in a port pattern."""
    return frozenset(PLACEHOLDER.findall(pattern))


def _pattern(text: str) -> re.Pattern[str]:
    """A port pattern as a regular expression; a placeholder that comes back must repeat its value."""
    seen: set[str] = set()
    parts: list[str] = []
    end = 0
    for hole in PLACEHOLDER.finditer(text):
        parts.append(re.escape(text[end : hole.start()]))
        name = hole[1]
        parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>[A-Za-z0-9_]+)")
        seen.add(name)
        end = hole.end()
    return re.compile("".join(parts) + re.escape(text[end:]))
