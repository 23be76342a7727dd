# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle inspect``: what is in a bundle, for people or as JSON. Nothing is run and no weight is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from genai_bundle.bundle import Bundle
    from genai_bundle.manifest import Manifest
    from genai_bundle.ports import Port

EXAMPLES = """\b
Examples:
  genai-bundle inspect tiny-stories.genai
  genai-bundle inspect tiny-stories.genai --json
"""

SHOWN_TEXT = 48
"""Characters of a saved prefix's text that its line shows."""

SHOWN_OPS = 6
"""Operators named in a graph's line; the JSON form has them all."""


def register(app: typer.Typer) -> None:
    app.command("inspect", epilog=EXAMPLES)(inspect)


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle: a .genai file or its unpacked folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a bundle holds: its pipeline, inputs, outputs, graphs, sizes and digests."""
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli import console

    with open_bundle(file) as bundle:
        facts = summary(bundle)
        if json:
            console.print_json(facts)
        else:
            _print(facts, bundle.manifest)


def summary(bundle: Bundle) -> dict[str, Any]:
    """Everything that this command shows, as JSON values. Sizes are in bytes."""
    from genai_bundle.cli.console import type_text

    manifest = bundle.manifest
    about = {key: getattr(manifest, key) for key in ("name", "version", "task", "description", "license")}
    total = sum(entry.size for entry in manifest.files.values())
    return {
        **about,
        "authors": list(manifest.authors),
        "id": bundle.id,
        "format": manifest.format,
        "requires": list(manifest.requires),
        "form": bundle.form,
        "size": bundle.path.stat().st_size if bundle.form == "file" else total,
        "source": dict(manifest.source),
        "inputs": {
            name: {
                "type": type_text(given.type, given.dims, given.rate),
                "required": given.required,
                **({"default": given.default} if given.has_default else {}),
                **({"description": given.description} if given.description else {}),
            }
            for name, given in manifest.inputs.items()
        },
        "outputs": {
            name: {
                "type": type_text(result.type, result.dims, result.rate),
                **({"description": result.description} if result.description else {}),
            }
            for name, result in manifest.outputs.items()
        },
        "generation": dict(manifest.generation),
        "reply": dict(manifest.text.reply) if manifest.text else {},
        "adapters": {name: _adapter(bundle, name) for name in manifest.adapters},
        "prefixes": {name: _prefix(manifest, name) for name in manifest.prefixes},
        "state": {name: _state(manifest, name) for name in manifest.state},
        "graphs": {name: _graph(bundle, name) for name in manifest.graphs},
        "members": [
            {"path": path, "size": entry.size, "sha256": entry.sha256} for path, entry in sorted(manifest.files.items())
        ],
        "tests": [
            {"name": test.name, "inputs": list(test.inputs), "outputs": list(test.outputs)} for test in manifest.tests
        ],
    }


def _state(manifest: Manifest, name: str) -> dict[str, Any]:
    state = manifest.state[name]
    keys = ("graph", "update", "axis", "tokens", "capacity", "window", "scope", "of")
    return {key: getattr(state, key) for key in keys if getattr(state, key) is not None} | {"ports": dict(state.ports)}


def _adapter(bundle: Bundle, name: str) -> dict[str, Any]:
    """The files of an adapter by graph, and what their tensors are in all: how many, and of how many bytes."""
    from genai_bundle.adapters import VALUES

    adapter = bundle.manifest.adapters[name]
    ports = [port for file in adapter.graphs.values() for port in bundle.ports(file).outputs.values()]
    sizes = [prod(int(dim) for dim in port.dims) * VALUES[port.dtype] for port in ports]
    about = {"description": adapter.description} if adapter.description else {}
    return {**about, "graphs": dict(adapter.graphs), "tensors": len(sizes), "size": sum(sizes)}


def _prefix(manifest: Manifest, name: str) -> dict[str, Any]:
    """What a saved prefix is the beginning of, with what it was computed, and its bytes."""
    from genai_bundle.prefixes import array_size

    prefix = manifest.prefixes[name]
    size = sum(array_size(array) for ports in prefix.states.values() for array in ports.values())
    about = {"of": dict(prefix.of), "adapter": prefix.adapter, "computed": dict(prefix.computed)}
    return {"tokens": len(prefix.ids), "size": size, **about}


def _graph(bundle: Bundle, name: str) -> dict[str, Any]:
    entry = bundle.manifest.graphs[name]
    variants = [
        {"name": variant.name, "when": dict(variant.when), **_model(bundle, variant.file)} for variant in entry.variants
    ]
    return {"place": entry.place, **_model(bundle, entry.file), "variants": variants}


def _model(bundle: Bundle, file: str) -> dict[str, Any]:
    """The facts of one graph file: opsets {domain: version}, operators with their counts, ports."""
    model = bundle.graph(file)
    ports = bundle.ports(file)
    nodes = [node for graph in (model.graph, *model.functions) for node in graph.node]
    ops = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes)
    return {
        "file": file,
        "ir": model.ir_version,
        "opset": {opset.domain: opset.version for opset in model.opset_import},
        "nodes": len(nodes),
        "operators": dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        "inputs": {port.name: _port(port) for port in ports.inputs.values()},
        "outputs": {port.name: _port(port) for port in ports.outputs.values()},
    }


def _port(port: Port) -> str:
    return f"{port.dtype}[{','.join(str(dim) or '?' for dim in port.dims)}]"


def _print(facts: Mapping[str, Any], manifest: Manifest) -> None:
    from genai_bundle.cli import console
    from genai_bundle.cli.draw import pipeline_tree
    from genai_bundle.cli.report import source_rows, table

    out = console.stdout()
    version = f" {facts['version']}" if facts["version"] else ""
    out.print(f"{facts['name']}{version}", style="bold")
    if facts["description"]:
        out.print(facts["description"])
    rows = [(key, facts[key]) for key in ("task", "license")]
    rows += [("authors", ", ".join(facts["authors"])), ("id", facts["id"])]
    rows += [("format", f"{facts['format']}, {facts['form']}, {console.human_size(facts['size'])}")]
    rows += [("requires", ", ".join(facts["requires"]))]
    rows += [("defaults", ", ".join(f"{key} {value}" for key, value in facts["generation"].items()))]
    rows += [("reply", json.dumps(facts["reply"], ensure_ascii=False) if facts["reply"] else "")]
    for key, value in rows:
        if value:
            out.print(f"{key:<9} {value}", soft_wrap=True)  # a digest must stay in one piece, to be copied
    out.print()
    out.print(pipeline_tree(manifest))
    out.print()
    out.print(_table("inputs and outputs", _values(facts)))
    if facts["state"]:
        out.print()
        out.print(_table("state", [(name, _state_text(state)) for name, state in facts["state"].items()]))
    out.print()
    out.print(_table("graphs", list(_graph_rows(facts["graphs"]))))
    if facts["adapters"]:
        out.print()
        out.print(_table("adapters", list(_adapter_rows(facts["adapters"]))))
    if facts["prefixes"]:
        out.print()
        out.print(_table("saved prefixes", list(_prefix_rows(facts["prefixes"]))))
    out.print()
    out.print("members (sha256)", style="bold")
    width = max((len(member["path"]) for member in facts["members"]), default=0)
    for member in facts["members"]:
        size = console.human_size(member["size"])
        out.print(f"{member['path']:<{width}}  {size:>8}  {member['sha256']}", soft_wrap=True)
    source = list(source_rows(facts["source"]))
    if source:
        out.print()
        out.print("source", style="bold")
        out.print(table(source))
    names = ", ".join(test["name"] or f"tests[{index}]" for index, test in enumerate(facts["tests"]))
    out.print()
    out.print(f"golden vectors: {len(facts['tests'])}" + (f" ({names})" if names else ""))


def _table(title: str, rows: Iterable[tuple[str, ...]]) -> Table:
    """Plain columns under a title; what is too long for the terminal goes on in the next line of its column."""
    from rich.table import Table

    rows = list(rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    for _ in range(max((len(row) for row in rows), default=0)):
        table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _values(facts: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for name, given in facts["inputs"].items():
        need = "required" if given["required"] else f"default {given['default']}" if "default" in given else "optional"
        yield "in", name, given["type"], need, given.get("description", "")
    for name, result in facts["outputs"].items():
        yield "out", name, result["type"], "", result.get("description", "")


def _state_text(state: Mapping[str, Any]) -> str:
    ports = ", ".join(f"{past} ↔ {present}" for past, present in state["ports"].items())
    keys = ("tokens", "capacity", "window", "of")
    extra = "".join(f", {key} {state[key]}" for key in keys if key in state)
    return f"{state['update']} in [{state['graph']}]{extra}, {state['scope']}: {ports}"


def _graph_rows(graphs: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for name, graph in graphs.items():
        yield f"[{name}]", graph["file"], _model_text(graph), "host" if graph["place"] == "host" else ""
        for variant in graph["variants"]:
            when = " ".join(variant["when"].values())
            yield f"  {variant['name']}", variant["file"], _model_text(variant), f"when {when}"


def _adapter_rows(adapters: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    from genai_bundle.cli import console

    for name, adapter in adapters.items():
        graphs = ", ".join(f"[{graph}]" for graph in adapter["graphs"])
        size = f"{adapter['tensors']} tensors, {console.human_size(adapter['size'])}"
        yield name, graphs, size, adapter.get("description", "")


def _prefix_rows(prefixes: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    from genai_bundle.cli import console

    for name, prefix in prefixes.items():
        computed = prefix["computed"]
        engine = " ".join([*(f"{name} {version}" for name, version in computed["engines"].items())])
        variants = ", ".join(sorted({one["variant"] for one in computed["graphs"].values()}))
        size = f"{prefix['tokens']} tokens, {console.human_size(prefix['size'])}"
        text = " ".join(prefix["of"].get("prompt", prefix["of"].get("system", "")).split())
        yield name, size, f"{engine}, {variants}", prefix["adapter"] or "", text[:SHOWN_TEXT]


def _model_text(model: Mapping[str, Any]) -> str:
    opsets = ", ".join(f"{domain or 'opset'} {version}" for domain, version in model["opset"].items())
    ops = list(model["operators"].items())
    named = ", ".join(f"{op.rpartition('.')[2]} {count}" for op, count in ops[:SHOWN_OPS]) + (
        ", …" if len(ops) > SHOWN_OPS else ""
    )
    return f"{opsets}; {model['nodes']} nodes: {named}"
