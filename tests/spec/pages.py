# SPDX-License-Identifier: Apache-2.0
"""The specification's pages as data: their fenced blocks, their rules, their links and anchors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "spec"

RULE = re.compile(r"\*\*\[([A-Z][0-9]+)\]\*\*( \((?:runner|builder)\))? ")
"""How the definition of a rule begins."""

_FENCE = re.compile(r"( *)(`{3,})(.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block. `info` is what stands behind the fence, such as `json invalid=M7`."""

    page: str
    line: int
    info: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Rule:
    """A rule's paragraph. `whose` is `runner`, `builder`, or empty for what a reader refuses."""

    page: str
    line: int
    id: str
    whose: str
    lines: tuple[str, ...]


def pages() -> list[Path]:
    """All pages of the specification."""
    return sorted(SPEC.rglob("*.md"))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def split(page: Path) -> tuple[list[tuple[int, str]], list[Block]]:
    """A page's lines outside of fenced blocks, with their numbers from 1, and its blocks."""
    lines: list[tuple[int, str]] = []
    blocks: list[Block] = []
    fence, start, info, inside = "", 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        found = _FENCE.fullmatch(line)
        if fence and found and found[2] == fence and not found[3].strip():
            blocks.append(Block(name(page), start, info, "\n".join(inside) + "\n"))
            fence, inside = "", []
        elif fence:
            inside.append(line)
        elif found:
            fence, start, info = found[2], number, found[3].strip()
        else:
            lines.append((number, line))
    assert not fence, f"{name(page)}:{start}: this block has no end"
    return lines, blocks


def all_blocks(of: list[Path] | None = None) -> list[Block]:
    return [block for page in of or pages() for block in split(page)[1]]


def paragraphs(page: Path) -> Iterator[list[tuple[int, str]]]:
    """Runs of lines without an empty one between them, outside of blocks."""
    paragraph: list[tuple[int, str]] = []
    for number, line in split(page)[0]:
        if line.strip():
            paragraph.append((number, line))
        elif paragraph:
            yield paragraph
            paragraph = []
    if paragraph:
        yield paragraph


def rules() -> list[Rule]:
    """Every definition of a rule, in the order of the pages."""
    found = []
    for page in pages():
        for paragraph in paragraphs(page):
            number, first = paragraph[0]
            if begin := RULE.match(first):
                whose = (begin[2] or "").strip(" ()")
                found.append(Rule(name(page), number, begin[1], whose, tuple(line for _, line in paragraph)))
    return found


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make, as GitHub makes them."""
    found = set()
    for _, line in split(page)[0]:
        if heading := re.fullmatch(r"#+ (.*)", line):
            text = re.sub(r"[^\w\- ]", "", heading[1].strip().lower())
            found.add(text.replace(" ", "-"))
    return found


def links(page: Path) -> list[tuple[int, str]]:
    """Link targets with their lines; code spans hold none."""
    found = []
    for number, line in split(page)[0]:
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "``", line)):
            found.append((number, target))
    return found
