# SPDX-License-Identifier: Apache-2.0
"""The table of families in docs/families.md: written from a run, and read back to be compared with the next one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(frozen=True)
class Cell:
    """One build on one engine: `right` with the largest difference, `wrong` or `refused` with the reason."""

    verdict: str
    detail: float | str

    def __str__(self) -> str:
        return f"{self.verdict} ({bound(self.detail)})" if isinstance(self.detail, float) else self.verdict


@dataclass(frozen=True)
class Row:
    """One family: the exporter that an ordinary build takes; by (exporter, form) cells of both engines."""

    chosen: str
    cells: Mapping[tuple[str, str], Sequence[Cell]]

    @property
    def verdicts(self) -> list[str]:
        """The chosen exporter and its cells, without figures, which vary with the processor.

        What the other exporters do is told, not promised: it changes with their releases.
        """
        return [self.chosen, re.sub(r" [(][^)]*[)]", "", dict(self.texts())[self.chosen])]

    def texts(self) -> list[tuple[str, str]]:
        """(exporter, its cells) in the order in which they are tried, without those that refuse the family."""
        found: dict[str, list[str]] = {}
        for (exporter, form), cells in self.cells.items():
            if cells[0].verdict != "refused":
                found.setdefault(exporter, []).append(f"{form} {join(cells)}")
        return [(exporter, ", ".join(texts)) for exporter, texts in found.items()]


def join(cells: Sequence[Cell]) -> str:
    return " / ".join(map(str, cells))


def bound(difference: float) -> str:
    """The power of ten above a difference."""
    return "0" if difference == 0 else f"< 1e{math.floor(math.log10(difference)) + 1}"


def write(page: Path, rows: Mapping[str, Row], families: Iterable[str]) -> None:
    """Put `rows` into the table between the page's two marks, in the order of `families`; other rows stay."""
    text = page.read_text(encoding="utf-8")
    lines = {line.split("|")[1].strip(): line for line in text[text.index(BEGIN) : text.index(END)].splitlines()[3:]}
    for name, row in rows.items():
        outcomes = "<br>".join(f"{exporter}: {cells}" for exporter, cells in row.texts())
        lines[name] = f"| {name} | {row.chosen} | {outcomes} |"
    table = ["| family | built with | exporter: form onnxruntime / reference |", "|---|---|---|"]
    table += [lines[name] for name in families if name in lines]
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    page.write_text("\n".join([head, *table, tail]), encoding="utf-8")


def read_verdicts(page: Path) -> dict[str, list[str]]:
    """What the page's table says of each family, in the form of `Row.verdicts`."""
    text = page.read_text(encoding="utf-8")
    table = text[text.index(BEGIN) : text.index(END)].strip().splitlines()[3:]
    found = {}
    for line in table:
        name, chosen, outcomes = (part.strip() for part in line.strip("|").split("|"))
        cells = dict(part.split(": ", 1) for part in outcomes.split("<br>"))
        found[name] = [chosen, re.sub(r" [(][^)]*[)]", "", cells[chosen])]
    return found
