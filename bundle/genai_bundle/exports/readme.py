# SPDX-License-Identifier: Apache-2.0
"""README.md of a plain folder: what lies in it, which port takes what, and a program of a page that runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from genai_bundle.bundle import Bundle
from genai_bundle.exports.generator import Generator
from genai_bundle.ports import Port, Ports, match_ports

DTYPES = {
    "i64": "np.int64", "i32": "np.int32", "f32": "np.float32", "f16": "np.float16", "f64": "np.float64",
    "bool": "np.bool_", "i8": "np.int8", "u8": "np.uint8",
}  # fmt: skip

FED = {
    "ids": "[ids]",
    "mask": "np.ones((1, total))",
    "positions": "[range(past, total)]",
    "last": "total - 1",
    "total": "total",
    "len": "past",
    "capacity": "CAPACITY",
}
"""What a role is in the program below, where `past` tokens are cached and `total` are so with the new ones."""

PROGRAM = '''\
"""Continue a prompt with the likeliest tokens: python run.py {arguments}"""
import json
import sys

import numpy as np
import onnxruntime as ort
{imports}
CAPACITY = {capacity}
EOS = {eos}
MOST = 24

options = ort.SessionOptions()
options.log_severity_level = 3
session = ort.InferenceSession("{file}", options)
state = json.load(open("pipeline.json", encoding="utf-8"))["state"]
pairs = {{past: present for one in state.values() for past, present in one["pairs"].items()}}
names = [output.name for output in session.get_outputs()]
ports = {{port.name: port for port in session.get_inputs()}}
types = {{"tensor(float)": np.float32, "tensor(float16)": np.float16}}

caches = {{}}
for one in state.values():
    for before in one["pairs"]:
        shape = [dim if isinstance(dim, int) else 1 for dim in ports[before].shape]
        if one["update"] != "replace":  # it grows from nothing, or is a buffer of full length
            shape[one["axis"]] = CAPACITY if one["update"] == "shared" else 0
        caches[before] = np.zeros(shape, types[ports[before].type])

{begin}
past, drawn = 0, []
while len(drawn) < MOST:
    total = past + len(ids)
    feeds = {{
{feeds}
    }}
    results = dict(zip(names, session.run(names, feeds | caches)))
    caches = {{before: results[after] for before, after in pairs.items()}}
    past, ids = total, [int(results["{logits}"][0, -1].argmax())]
    drawn += ids
    if ids[0] in EOS:
        break
{end}
'''

OPEN = """\
import onnxruntime as ort

for name in {files}:
    session = ort.InferenceSession(name)
    print(name)
    for port in (*session.get_inputs(), *session.get_outputs()):
        print(" ", port.name, port.type, port.shape)
"""


def readme(bundle: Bundle, variant: str, found: Generator | None, graphs: Mapping[str, Ports]) -> str:
    """The text. `graphs` has the ports of each graph in the form that was taken."""
    manifest = bundle.manifest
    about = [
        f"# {manifest.name}",
        manifest.description or "",
        f"Licence: {manifest.license}." if manifest.license else "",
    ]
    about.append(f"Exported from the bundle `{bundle.id}`, form `{variant}`.")
    parts = [line for line in about if line]
    parts += ["## Files", "\n".join(_files(bundle, graphs)), "## Ports", *_ports(bundle, found, graphs)]
    if manifest.state:
        parts += ["## State", "\n".join(_states(bundle))]
    program = program_for(bundle, found) if found is not None and runs(found) else None
    if program is not None:
        hint = "Save as `run.py` in this folder; it needs numpy, onnxruntime and tokenizers."
        parts += ["## Run", hint, f"```python\n{program}```"]
    else:
        files = [f"{name}.onnx" for name in graphs]
        hint = "`pipeline.json` says in `steps` which graph runs when, and what it is fed. This shows their ports:"
        parts += ["## Run", hint, f"```python\n{OPEN.format(files=files)}```"]
    return "\n\n".join(parts) + "\n"


def _files(bundle: Bundle, graphs: Mapping[str, Ports]) -> Iterator[str]:
    for name in graphs:
        yield f"* `{name}.onnx`: a graph; its weights are in `model.onnx.data`, which has to stay beside it"
    yield "* `pipeline.json`: inputs, outputs, states and steps, as the bundle's manifest says them"
    if bundle.manifest.text is not None:
        names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
        yield f"* {', '.join(f'`{name}`' for name in names)}: as Hugging Face's libraries read them"
        if bundle.manifest.text.template is not None:
            yield "* `chat_template.jinja`: from a conversation to a prompt"
    yield "* `genai-bundle-export.json`: where this folder came from, and what of the bundle it does not hold"


def _ports(bundle: Bundle, found: Generator | None, graphs: Mapping[str, Ports]) -> Iterator[str]:
    for name, ports in graphs.items():
        kept = [match_ports(state.ports, ports) for state in bundle.manifest.state.values() if state.graph == name]
        hidden = {port for pairs in kept for pair in pairs.items() for port in pair}
        rows = [f"### {name}.onnx\n", "| port | type | |", "|---|---|---|"]
        for port in ports.inputs.values():
            if port.name not in hidden:
                rows.append(f"| `{port.name}` | {_type(port)} | in{_meaning(found, name, port.name)} |")
        rows += [
            f"| `{port.name}` | {_type(port)} | out |" for port in ports.outputs.values() if port.name not in hidden
        ]
        yield "\n".join(rows)


def _type(port: Port) -> str:
    return f"{port.dtype} [{', '.join(str(dim) or '?' for dim in port.dims)}]"


def _meaning(found: Generator | None, graph: str, port: str) -> str:
    words = {
        "ids": "the new tokens", "mask": "1 for each token, cached ones too", "positions": "of the new tokens",
        "last": "tokens with the new ones, less one", "total": "tokens with the new ones", "len": "cached tokens",
        "capacity": "length of the cache's buffers",
    }  # fmt: skip
    if found is None or found.graph != graph:
        return ""
    if port in found.literals:
        return f": always {found.literals[port]}"
    return f": {words[found.feeds[port]]}" if port in found.feeds else ""


def _states(bundle: Bundle) -> Iterator[str]:
    for name, state in bundle.manifest.state.items():
        ports = ", ".join(f"`{past}` takes what `{present}` gave" for past, present in state.ports.items())
        yield f"* `{name}` of `{state.graph}.onnx`: {ports}. `pipeline.json` has all pairs and how they are updated."


def runs(found: Generator) -> bool:
    """Whether the program below is enough: any number of new tokens, caches of a length that it can tell."""
    ids = found.port("ids")
    if ids is None or isinstance(found.ports.inputs[ids].dims[-1], int):
        return False
    return all(cache.state.update in ("append", "shared", "replace") for cache in found.caches) and all(
        found.ports.inputs[past].dtype in ("f32", "f16") for cache in found.caches for past in cache.pairs
    )


def program_for(bundle: Bundle, found: Generator) -> str:
    """run.py: greedy tokens of a prompt, equal to those of the bundle."""
    text = bundle.manifest.text
    return PROGRAM.format(
        arguments="PROMPT" if text else "ID ID ...",
        imports="from tokenizers import Tokenizer\n" if text else "",
        capacity=found.context or 0,
        eos=sorted(text.eos) if text else [],
        file=f"{found.graph}.onnx",
        begin=(
            'tokenizer = Tokenizer.from_file("tokenizer.json")\ntokenizer.no_truncation()\ntokenizer.no_padding()\n'
            "ids = tokenizer.encode(sys.argv[1]).ids"
            if text
            else "ids = [int(word) for word in sys.argv[1:]]"
        ),
        feeds="\n".join(_feeds(found)),
        logits=found.logits,
        end="print(drawn)" + ("\nprint(tokenizer.decode(drawn))" if text else ""),
    )


def _feeds(found: Generator) -> Iterator[str]:
    for name, role in found.feeds.items():
        port = found.ports.inputs[name]
        value = FED[role]
        if role in ("last", "total", "len", "capacity") and port.dims:
            value = "[" * len(port.dims) + value + "]" * len(port.dims)
        yield f'        "{name}": np.array({value}, {DTYPES[port.dtype]}),'
    for name, literal in found.literals.items():
        yield f'        "{name}": np.array({literal}, {DTYPES[found.ports.inputs[name].dtype]}),'
