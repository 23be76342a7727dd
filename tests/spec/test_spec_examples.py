# SPDX-License-Identifier: Apache-2.0
"""Every fenced block of the specification is what it says: valid, refused by its rule, or a recipe that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import genai_runner
from conftest import BACKENDS
from genai_bundle import schemas
from genai_bundle.canonical import dumps
from genai_bundle.check import check_manifest
from genai_bundle.errors import InvalidBundle
from genai_bundle.manifest import parse_manifest
from genai_runner.verify import run_tests
from spec.pages import ROOT, Block, all_blocks, pages
from spec.recipes import build

BLOCKS = all_blocks(pages())
KINDS = ("json manifest", "json invalid=", "yaml recipe", "yaml steps", "text", "json", "python")


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.info.startswith(kind)]


def schema_errors(document: Any) -> list[str]:
    return [error.message for error in schemas.validator("manifest.schema").iter_errors(document)]


def test_there_is_no_block_of_another_kind() -> None:
    assert len(BLOCKS) > 30
    assert not [f"{block.place} {block.info}" for block in BLOCKS if not block.info.startswith(KINDS)]


def test_the_twelve_constructs_have_an_example_each() -> None:
    page = [block for block in BLOCKS if block.page == "spec/pipeline.md" and block.info != "text"]
    lines = (ROOT / "spec" / "pipeline.md").read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines, 1) if line.startswith("## ") and line[3].isdigit()]
    ends = [*starts[1:], len(lines) + 1]
    assert len(starts) == 12
    for start, end in zip(starts, ends, strict=True):
        assert any(start < block.line < end for block in page), lines[start - 1]


@pytest.mark.parametrize("block", of_kind("json manifest"))
def test_a_manifest_is_accepted(block: Block) -> None:
    document = json.loads(block.text)
    check_manifest(parse_manifest(dumps(document)))
    if document["format"] == "1.0":  # the schema of 1.0 states 1.0 only
        assert schema_errors(document) == []


@pytest.mark.parametrize("block", of_kind("json invalid="))
def test_an_invalid_manifest_is_refused_by_its_rule(block: Block) -> None:
    with pytest.raises(InvalidBundle) as caught:
        check_manifest(parse_manifest(dumps(json.loads(block.text))))
    assert caught.value.rule == block.info.removeprefix("json invalid=")


@pytest.mark.parametrize("block", of_kind("yaml steps"))
def test_a_fragment_of_steps_has_the_shape_of_steps(block: Block) -> None:
    schema = schemas.load("manifest.schema")
    validator = Draft202012Validator({**schema["properties"]["steps"], "$defs": schema["$defs"]})
    assert [error.message for error in validator.iter_errors(yaml.safe_load(block.text))] == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", of_kind("yaml recipe"))
def test_a_recipe_builds_and_runs(block: Block, backend: str, tmp_path: Path) -> None:
    target = build(block.text, tmp_path)
    for literal in (False, True):
        with genai_runner.load(target, backend=backend, threads=1, literal=literal) as pipe:
            assert pipe.manifest.tests, "an example without a golden vector"
            assert [f"{backend}: {result}" for result in run_tests(pipe) if not result.passed] == []
