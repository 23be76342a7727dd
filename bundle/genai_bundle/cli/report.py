# SPDX-License-Identifier: Apache-2.0
"""How `build` and `inspect` say where a bundle comes from: rows of a word and what there is to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Json = Mapping[str, Any]
Row = tuple[str, str]

SHORT = 12
"""Digits of a digest that tell files apart; the JSON form has them all."""

MOST = 12
"""Files named one by one; a checkpoint may have hundreds of shards."""


def source_rows(source: Json) -> Iterator[Row]:
    """The record that a bundle carries of its own making."""
    words = [str(source[key]) for key in ("repo", "revision", "base_model") if source.get(key)]
    if words:
        yield "published", " ".join(words)
    exporter = source.get("exporter")
    if isinstance(exporter, Mapping):
        yield "exporter", " ".join(str(word) for word in exporter.values())
    for tried in _list(source.get("tried")):
        yield "tried", f"{tried.get('name')}: failed at its {tried.get('failed')}"
    yield from _files(source.get("files"))
    proof = source.get("proof")
    if isinstance(proof, Mapping):
        yield from _proof(proof)
    yield from _nested("weights", source.get("weights"))
    yield from _nested("dropped", source.get("dropped"))
    draft = source.get("draft")
    if isinstance(draft, Mapping):
        yield "draft", str(draft.get("name"))
        yield from ((f"draft's {word}", text) for word, text in source_rows(draft))


def build_rows(facts: Json) -> Iterator[Row]:
    """What a build has to say at its end; `facts` is what `report.summary` gives."""
    from genai_bundle.cli.console import human_size

    yield "source", facts["layout"]
    if "repo" in facts:
        yield "source", f"{facts['repo']} {facts['revision']}"
    if facts["exporter"]:
        yield "exporter", " ".join(str(word) for word in facts["exporter"].values())
    for tried in facts["tried"]:
        yield "tried", f"{tried['name']}: {tried['reason']}"
    yield from _files(facts["read"]["files"])
    yield from _proof(facts["proof"])
    for form, gap in facts["proved"].items():
        yield "proved", f"{form}" + ("" if gap is None else f": largest difference of a logit {gap:.1e}")
    if facts["draft"]:
        yield "draft", facts["draft"]
    yield from ((name, text) for name, text in facts["figures"].items())
    yield from _nested("weights", facts["weights"])
    sizes = facts["sizes"]
    parts = ", ".join(f"{name} {human_size(size)}" for name, size in sizes.items() if size)
    read, whole = facts["read"]["size"], sum(sizes.values())
    yield "size", parts + (f"; {whole / read:.0%} of the {human_size(read)} that were read" if read else "")
    yield from _nested("dropped", facts["dropped"])
    yield from (("note", note) for note in facts["notes"])


def table(rows: Iterator[Row] | Sequence[Row]) -> Table:
    """Two columns; a word that was just said is not said again."""
    from rich.table import Table

    found = Table(box=None, show_header=False, pad_edge=False)
    found.add_column(no_wrap=True)
    found.add_column(overflow="fold")
    last = ""
    for word, text in rows:
        found.add_row("" if word == last else word, text)
        last = word
    return found


def _files(files: Any) -> Iterator[Row]:
    if not isinstance(files, Mapping):
        return
    for name, digest in list(files.items())[:MOST]:
        yield "read", f"{name}  sha256 {str(digest)[:SHORT]}…"
    if len(files) > MOST:
        yield "read", f"and {len(files) - MOST} more"


def _proof(proof: Json) -> Iterator[Row]:
    if proof.get("reference"):
        yield "proof", f"against {proof['reference']}"
    checks = ", ".join(str(check) for check in _list(proof.get("checks")))
    bound = f", within {proof['max_abs']:g}" if isinstance(proof.get("max_abs"), int | float) else ""
    if checks:
        yield "proof", f"{checks}{bound}"
    if proof.get("forms"):
        yield "proof", f"of the forms {', '.join(map(str, _list(proof['forms'])))}"


def _nested(word: str, value: Any) -> Iterator[Row]:
    """Whatever a builder wrote here, on as few lines as it has groups."""
    if isinstance(value, Mapping):
        yield from ((word, f"{name}: {_flat(inner)}") for name, inner in value.items() if inner)
    elif value:
        yield word, _flat(value)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_flat(inner)}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
