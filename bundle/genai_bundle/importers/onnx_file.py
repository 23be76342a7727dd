# SPDX-License-Identifier: Apache-2.0
"""One ONNX file alone. It says what it computes and nothing of what goes around it, so a person has to.

What can be read off its ports is written down as a draft of a recipe, which builds as it stands: one run of the graph,
every port by its own name. What it means, and the steps before and after, are then filled in.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from genai_bundle.errors import SourceError, UsageError
from genai_bundle.importers.graphs import read_graph
from genai_bundle.ports import Port, Ports

LAYOUT = "one ONNX graph"

TYPES = ("f32", "f16", "i64", "i32", "u8", "bool")

PAIRS = (("past_key_values", "present"), ("past", "present"), ("_in", "_out"), ("", "_out"), ("", "N"), ("", "n"))
"""How exporters call a state that goes in and comes out: replaced in the name, or added to it."""


def recognises(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".onnx"


def build(source: Path, *_: object) -> str:
    """Always raises UsageError: the pipeline around the graph is not known."""
    command = f"genai-bundle build {source.name} --draft-recipe -o {source.stem}.yaml"
    raise UsageError(
        "is one graph, and does not say what goes in and comes out",
        where=source.name, hint=f"Begin with a draft of a recipe: {command}",
    )  # fmt: skip


def draft_recipe(source: Path, target: Path, *, overwrite: bool = False) -> None:
    """Write the recipe `target`, which builds, for the graph `source`.

    Raises:
        UsageError: the source is no ONNX file, or the target exists. SourceError: the graph cannot be read or used.
    """
    if not recognises(source):
        raise UsageError("a draft can be made of an .onnx file only", where=str(source))
    if target.exists() and not overwrite:
        raise UsageError("exists already", where=str(target), hint="Give --force to replace it")
    ports = read_graph("model", source).ports
    file = Path(os.path.relpath(source, target.parent)).as_posix()
    target.write_text("\n".join(_lines(ports, file, source)) + "\n", encoding="utf-8")


def _lines(ports: Ports, file: str, source: Path) -> Iterator[str]:
    states = _states(ports)
    given = [port for port in ports.inputs.values() if port.name not in states and not port.optional]
    results = [port for port in ports.outputs.values() if port.name not in states.values()]
    if not results:
        raise SourceError("all its outputs are states: it gives nothing", where=source.name)
    inputs = {port.name: _name(port.name) for port in given}
    outputs = {port.name: _free(_name(port.name), set(inputs.values())) for port in results}
    yield f"# A draft for {source.name}. It builds: genai-bundle build RECIPE -o FILE.genai"
    yield "# Say what the graph is for (spec/tasks.md), name things as people would, and add the steps around it;"
    yield "# the grammar is in spec/pipeline.md, and tests are values that you know to be right."
    yield f"name: {re.sub(r'[^A-Za-z0-9._-]+', '-', source.stem).strip('-.') or 'model'}"
    yield "#task: feature-extraction"
    yield "#license: Apache-2.0"
    yield f"graphs: {{model: {json.dumps(file)}}}"
    yield "inputs:"
    yield from (f"  {inputs[port.name]}: {_type(port, source)}" for port in given)
    if not given:
        yield "  {}"
    yield "outputs:"
    yield from (f"  {outputs[port.name]}: {_type(port, source)}" for port in results)
    yield from _state_lines(states, ports)
    yield "steps:"
    values = {port: f"{name}_value" for port, name in outputs.items()}
    yield f"- run: model\n  in: {_flow(inputs)}\n  out: {_flow(values)}"
    yield f"- emit: {_flow({outputs[port]: value for port, value in values.items()})}"
    yield "#tests:"
    asked = ", ".join(f"{name}: ..." for name in inputs.values())
    yield f"#- {{in: {{{asked}}}, out: {{{next(iter(outputs.values()))}: ...}}}}"


def _state_lines(states: dict[str, str], ports: Ports) -> Iterator[str]:
    if not states:
        return
    yield "state: # guessed from the ports' names: what a run returns is given to the next one of a session"
    for number, (past, present) in enumerate(states.items()):
        axis = _grows(ports.inputs[past], ports.outputs[present])
        update = "update: replace" if axis is None else f"update: append, axis: {axis}"
        yield f"  state{number}: {{graph: model, ports: {_flow({past: present})}, {update}, scope: session}}"


def _states(ports: Ports) -> dict[str, str]:
    """{input: output} of what looks like a state: names that belong together, of one type and rank."""
    found: dict[str, str] = {}
    for name, port in ports.inputs.items():
        for old, new in PAIRS:
            partner = ports.outputs.get(name.replace(old, new) if old else name + new)
            same = partner and (partner.dtype, len(partner.dims)) == (port.dtype, len(port.dims))
            if partner and same and partner.name != name and partner.name not in found.values():
                found[name] = partner.name
                break
    return found


def _grows(past: Port, present: Port) -> int | None:
    """The axis along which a run makes a state longer, where the dims say so."""
    pairs = enumerate(zip(past.dims, present.dims, strict=True))
    axes = [axis for axis, (old, new) in pairs if isinstance(old, str) and isinstance(new, str) and old != new]
    named = [axis for axis in axes if past.dims[axis] and any(dim == past.dims[axis] for dim in past.dims)]
    grown = [
        axis for axis in named if re.search(r"past|len|seq|time|\+", str(past.dims[axis]) + str(present.dims[axis]))
    ]
    return grown[0] if len(grown) == 1 else None


def _type(port: Port, source: Path) -> str:
    """The short form of a type; open dims keep their names."""
    if port.dtype not in TYPES:
        raise SourceError(
            f"its port {port.name!r} is {port.dtype}, which no value of a pipeline is", where=source.name,
            hint=f"Values are {', '.join(TYPES)}: add a Cast to the graph",
        )  # fmt: skip
    dims = [
        str(dim) if isinstance(dim, int) else _name(dim) if dim else f"D{axis}" for axis, dim in enumerate(port.dims)
    ]
    return json.dumps(f"{port.dtype}[{','.join(dims)}]" if dims else port.dtype)


def _name(text: str) -> str:
    """A name of the grammar."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "value"
    return name if re.match(r"[A-Za-z_]", name) else f"v_{name}"


def _free(name: str, taken: set[str]) -> str:
    return f"{name}_out" if name in taken else name


def _flow(values: dict[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()) + "}"
