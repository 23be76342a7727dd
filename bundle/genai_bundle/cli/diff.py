# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle diff``: what differs between two bundles, weights included. Nothing is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from genai_bundle.compare import Difference

EXAMPLES = """\b
Examples:
  genai-bundle diff tiny-stories.genai newer.genai
  genai-bundle diff tiny-stories.genai stories/    # the unpacked folder
  genai-bundle diff a.genai b.genai --json
"""

DIFFERENT = 6
"""Its own exit code: diff(1) has 1, which here is a fault of the program."""

ROWS = 20
"""Lines of a part; the JSON form has them all."""

PORTS = 3
"""Ports named in a line: caches have one for each layer."""

WIDE = 60

Row = tuple[str, str, str]


def register(app: typer.Typer) -> None:
    app.command("diff", epilog=EXAMPLES)(diff)


def diff(
    first: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle: a .genai file or its unpacked folder.")],
    second: Annotated[Path, typer.Argument(metavar="OTHER", help="What it is compared with.")],
    full: Annotated[bool, typer.Option("--full", help="Show every line, however many there are.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what differs between two bundles: manifest, members, graphs, weights, tokenizer, chat template.

    Exit code 0: they are the same bundle, in whichever form; 6: they differ.
    """
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli import console
    from genai_bundle.compare import compare

    with open_bundle(first) as one, open_bundle(second) as other:
        with console.progress("comparing weights") as report:
            found = compare(one, other, report)
        about = {
            "equal": found.equal,
            "first": {"path": str(first), "id": one.id},
            "second": {"path": str(second), "id": other.id},
        }
    if json:
        parts = ("manifest", "members", "graphs", "tensors", "same", "tokenizer", "template")
        console.print_json(about | {part: getattr(found, part) for part in parts})
    elif found.equal:
        typer.echo(f"the same bundle: {one.id}")
    else:
        _print(found, None if full else ROWS)
    if not found.equal:
        raise typer.Exit(DIFFERENT)


def _print(found: Difference, most: int | None) -> None:
    from rich.table import Table

    from genai_bundle.cli import console

    out = console.stdout()
    parts = {
        "manifest": [_document(change) for change in found.manifest],
        "members": [_member(change) for change in found.members],
        "graphs": [row for graph in found.graphs for row in _graph(graph)],
        f"weights ({_counts(found)})": [_tensor(tensor) for tensor in found.tensors],
        "tokenizer": list(_tokenizer(found.tokenizer)),
        "chat template": [("", line, "") for line in found.template],
    }
    for title, rows in parts.items():
        if not rows:
            continue
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
        )
        for _ in range(3):
            table.add_column(overflow="fold")
        for row in rows[:most]:
            table.add_row(*row)
        out.print(table)
        if most is not None and len(rows) > most:
            out.print(f"and {len(rows) - most} more; --full shows them")
        out.print()


def _document(change: Any) -> Row:
    sides = [_short(change[side]) for side in ("before", "after") if side in change]
    return _sign(change["change"]), change["path"], " → ".join(sides)


def _member(change: Any) -> Row:
    from genai_bundle.cli.console import human_size

    sides = [one for one in (change["before"], change["after"]) if one]
    text = " → ".join(f"{human_size(one['size'])} {one['sha256'][:12]}…" for one in sides)
    return _sign(change["change"]), change["path"], text


def _graph(graph: Any) -> Iterator[Row]:
    sign, name = _sign(graph["change"]), f"[{graph['name']}]"
    if graph["change"] != "changed":
        yield sign, name, graph["change"]
        return
    for word in ("ir", "opset", "inputs", "outputs", "functions"):
        if word in graph:
            yield sign, name, f"{word}: {_pair(graph[word])}"
    if "operators" in graph:
        counts = (f"{op} {one['before']} → {one['after']}" for op, one in graph["operators"].items())
        yield sign, name, f"operators: {', '.join(counts)}"
    for word, side in graph.get("nodes", {}).items():
        if isinstance(side, str):
            yield sign, name, side
            continue
        yield from ((_sign(word), name, text) for text in side["first"])
        if side["count"] > len(side["first"]):
            yield _sign(word), name, f"and {side['count'] - len(side['first'])} more nodes"
    if "only" in graph:
        yield sign, name, f"only {graph['only']}"


def _pair(sides: Any) -> str:
    """Of two objects only what is not in both."""
    before, after = sides["before"], sides["after"]
    if not isinstance(before, dict):
        return f"{_short(before)} → {_short(after)}"
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    shown = [f"{key} {before.get(key, 'none')} → {after.get(key, 'none')}" for key in keys[:PORTS]]
    return ", ".join(shown) + (f" and {len(keys) - PORTS} more" if len(keys) > PORTS else "")


def _tensor(tensor: Any) -> Row:
    kind = tensor["change"]
    if kind == "changed" and "max_abs" in tensor:
        text = f"{tensor['before']}: largest difference {_number(tensor['max_abs'])}, relative {_number(tensor['rel'])}"
    elif kind == "changed":
        text = f"{tensor['before']}: {tensor['bytes']['differ']} of {tensor['bytes']['of']} bytes differ"
    else:
        text = " → ".join(tensor[side] for side in ("before", "after") if side in tensor)
    if "dequantised" in tensor:
        apart = tensor["dequantised"]
        text += f"; dequantised: largest difference {_number(apart['max_abs'])}, relative {_number(apart['rel'])}"
    return _sign(kind), tensor["name"], f"{text}  {', '.join(f'[{name}]' for name in tensor['graphs'])}"


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _counts(found: Difference) -> str:
    counts = Counter(tensor["change"] for tensor in found.tensors)
    return ", ".join(f"{count} {kind}" for kind, count in {"same": found.same, **counts}.items())


def _tokenizer(found: Any) -> Iterator[Row]:
    for word in ("removed", "added", "renumbered"):
        for token, number in found.get(word, {}).items():
            text = " → ".join(map(str, number)) if isinstance(number, list) else str(number)
            yield _sign(word), repr(token), f"id {text}"
    if "merges" in found:
        merges = found["merges"]
        text = "reordered" if merges["reordered"] else f"{merges['added']} added, {merges['removed']} removed"
        yield "~", "merges", text
    for change in found.get("settings", ()):
        yield _document(change)


def _sign(change: str) -> str:
    return {"added": "+", "removed": "-"}.get(change, "~" if change != "moved" else ">")


def _short(value: Any) -> str:
    import json

    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDE else text[: WIDE - 1] + "…"
