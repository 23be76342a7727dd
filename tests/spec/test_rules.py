# SPDX-License-Identifier: Apache-2.0
"""The specification and the code name the same rules, and every rule is written as a rule."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from spec.pages import ROOT, Rule, anchors, links, name, pages, paragraphs, rules

ID = re.compile(r"[CFGIMPV][1-9][0-9]*")
KEYWORDS = re.compile(r"\b(?:MUST|SHALL|REQUIRED)\b")
READING = ROOT / "bundle" / "genai_bundle"
LINKED = [*pages(), ROOT / "runners" / "README.md", ROOT / "docs" / "format-tour.md"]


def raised() -> dict[str, set[str]]:
    """Rule ids in the code of the reading side, with the files that hold them.

    Every error carries its rule as a literal, so a text that is an id and nothing else is a rule that can be raised.
    Builder, importers and bench are left out: they raise none, and element types of other formats look alike (`I64`).
    """
    found: dict[str, set[str]] = {}
    for path in sorted(READING.rglob("*.py")):
        if {"builder", "importers", "bench"} & set(path.relative_to(READING).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and ID.fullmatch(node.value):
                found.setdefault(node.value, set()).add(name(path))
    return found


def key(rule: str) -> tuple[str, int]:
    return rule[0], int(rule[1:])


def test_every_rule_is_defined_once() -> None:
    counts = Counter(rule.id for rule in rules())
    assert len(counts) > 100
    assert not {rule: count for rule, count in counts.items() if count > 1}


def test_every_rule_that_the_code_raises_is_defined() -> None:
    defined = {rule.id for rule in rules()}
    assert not {rule: files for rule, files in raised().items() if rule not in defined}


def test_every_rule_of_a_reader_is_raised() -> None:
    for_readers = {rule.id for rule in rules() if not rule.whose}
    assert sorted(for_readers - set(raised()), key=key) == []


def test_ids_of_runners_and_builders_say_whose_they_are() -> None:
    letters = {"runner": "RT", "builder": "B"}
    assert not [rule.id for rule in rules() if (rule.id[0] in "RTB") != bool(rule.whose)]
    assert not [rule.id for rule in rules() if rule.whose and rule.id[0] not in letters[rule.whose]]


def text_of_tests() -> str:
    here = Path(__file__).resolve()
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path.resolve() != here]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


@pytest.mark.parametrize("rule", [rule for rule in rules() if rule.whose], ids=lambda rule: rule.id)
def test_every_rule_of_runners_and_builders_has_a_test_that_names_it(rule: Rule) -> None:
    assert re.search(rf"\b{rule.id}\b|_{rule.id.lower()}_", text_of_tests()), f"no test names {rule.id}"


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_must_has_an_id_and_a_reason(page: Path) -> None:
    """A line with MUST begins with an id, and a later line of its paragraph with `Reason:`."""
    wrong = []
    for paragraph in paragraphs(page):
        lines = [re.sub(r"`[^`]*`", "", line) for _, line in paragraph]
        for index, line in enumerate(lines):
            if not KEYWORDS.search(line):
                continue
            named = re.match(r"\*\*\[[A-Z][0-9]+\]\*\*", paragraph[index][1])
            if not named or not any(later.startswith("Reason: ") for later in lines[index + 1 :]):
                wrong.append(f"{name(page)}:{paragraph[index][0]}: {line}")
    assert not wrong


def test_every_definition_says_must_and_why() -> None:
    for rule in rules():
        assert "MUST" in rule.lines[0], f"{rule.page}:{rule.line}"
        assert any(line.startswith("Reason: ") for line in rule.lines[1:]), f"{rule.page}:{rule.line}"


def test_every_id_in_the_text_is_defined() -> None:
    defined = {rule.id for rule in rules()}
    for page in pages():
        for paragraph in paragraphs(page):
            for number, line in paragraph:
                text = re.sub(r"`[^`]*`|\([^)]*\.md[^)]*\)", "", line)
                for found in re.findall(r"(?<![\w.-])([BCFGIMPRTV][1-9][0-9]*)(?![\w-])", text):
                    assert found in defined, f"{name(page)}:{number}: {found}"


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for number, target in links(page):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = (page.parent / file).resolve() if file else page
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            wrong.append(f"{name(page)}:{number}: {target}")
    assert not wrong
