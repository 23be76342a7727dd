# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: walks every import of both packages, late ones too, and fails on a crossing."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"genai_bundle": ROOT / "bundle", "genai_runner": ROOT / "runners" / "python"}

READING = [
    # Low to high: a module may import what stands in the lines above it, and in its own.
    {"errors"},
    {"records", "names", "paths", "layout", "ports", "schemas", "canonical"},
    {"digest", "staging", "archive", "directory", "document", "literals"},
    {"steps", "sections", "signatures", "prefixes", "manifest"},
    {"container", "sanitize", "adapters"},
    {"bundle", "writer"},
    {"flow", "wiring", "check", "prefix_check"},
]
"""genai_bundle's own modules in the order of their dependence; `bundle` alone looks up: it calls `check`, late."""

TORCH = {"torch", "transformers", "onnxscript", "peft"}
ENGINES = {"onnxruntime", "openvino"}
STACKS = {"onnxruntime_genai", "openvino_genai"}
HELPERS = "genai_runner.backends._{}_"
"""How the names of a backend's other files begin."""

TO_OPENVINO = "genai_bundle.exports.openvino"
"""Writes what only that engine writes, with the backend's own reading of a graph, and a tokenizer by way of
transformers."""

BENCH, PEERS = "genai_bundle.bench", "genai_bundle.bench.peers"
"""Measures the runner, and other stacks in processes of their own."""

PROOFS = ("genai_bundle.builder.prove", "genai_bundle.builder.measure_fast")
EXPORTED = "genai_runner.engines._exported"
"""Has a bundle exported for another stack: the one module of the runner that asks for it."""

BOTH_SIDES = ("genai_bundle.cli", *PROOFS, BENCH, TO_OPENVINO)


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted((folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
            yield name, path


def imports(name: str, path: Path) -> Iterator[tuple[str, int]]:
    """Every module that `path` imports, by absolute name, with the line; `from a import b` counts as `a` and `a.b`."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            yield base, node.lineno
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


MODULES = dict(modules())
IMPORTS = [(name, target, line) for name, path in MODULES.items() for target, line in imports(name, path)]


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def crossings(allowed: object) -> list[str]:
    assert callable(allowed)
    return [f"{name}:{line} imports {target}" for name, target, line in IMPORTS if not allowed(name, target)]


def test_the_walk_sees_both_packages() -> None:
    assert len([name for name in MODULES if within(name, "genai_bundle")]) > 15
    assert len([name for name in MODULES if within(name, "genai_runner")]) > 10
    assert ("genai_bundle.cli.run", "genai_runner") in {(name, target) for name, target, _ in IMPORTS}


def test_only_the_command_and_the_proof_know_the_runner() -> None:
    assert not crossings(
        lambda name, target: (
            not within(name, "genai_bundle") or not within(target, "genai_runner") or within(name, *BOTH_SIDES)
        )
    )


def test_the_runner_knows_only_the_reading_side() -> None:
    writing = (
        "genai_bundle.builder",
        "genai_bundle.importers",
        "genai_bundle.exports",
        "genai_bundle.compare",
        BENCH,
        "genai_bundle.cli",
        "genai_bundle.writer",
        "genai_bundle.staging",
    )
    assert not crossings(
        lambda name, target: (
            not within(name, "genai_runner")
            or not within(target, *writing)
            or (name == EXPORTED and within(target, "genai_bundle.exports"))
        )
    )


def test_nothing_below_imports_the_command_or_the_builder() -> None:
    names = ("cli", "bench", "builder", "importers", "exports", "compare", "__main__")
    above = (*(f"genai_bundle.{name}" for name in names),)
    allowed = {"genai_bundle.builder": ("genai_bundle.builder", "genai_bundle.importers")}

    def fine(name: str, target: str) -> bool:
        if not within(target, *above) or within(name, "genai_bundle.cli", "genai_bundle.__main__"):
            return True
        if within(name, BENCH):
            return within(target, BENCH, "genai_bundle.exports")
        if name == EXPORTED:
            return within(target, "genai_bundle.exports")
        for own in ("genai_bundle.exports", "genai_bundle.compare"):
            if within(name, own):
                return within(target, own)
        return within(name, "genai_bundle.builder", "genai_bundle.importers") and within(
            target, *allowed["genai_bundle.builder"]
        )

    assert not crossings(fine)


def test_torch_stays_in_the_builder() -> None:
    assert not crossings(
        lambda name, target: (
            target.split(".")[0] not in TORCH
            or within(name, "genai_bundle.builder", "genai_bundle.importers")
            or (name == TO_OPENVINO and target.split(".")[0] == "transformers")
            or within(name, PEERS)
        )
    )


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_each_engine_stays_in_its_backend(engine: str) -> None:
    homes = (f"genai_runner.backends.{engine}", *(name for name in MODULES if name.startswith(HELPERS.format(engine))))
    assert not crossings(lambda name, target: target.split(".")[0] != engine or within(name, *homes, PEERS))


@pytest.mark.parametrize("stack", sorted(STACKS))
def test_each_stack_stays_in_its_engine(stack: str) -> None:
    homes = (f"genai_runner.engines.{stack}", f"genai_bundle.bench.peers.{stack}")
    assert not crossings(lambda name, target: target.split(".")[0] != stack or name in homes)


def test_the_reference_evaluator_stays_in_its_backend() -> None:
    assert not crossings(
        lambda name, target: not within(target, "onnx.reference") or within(name, "genai_runner.backends.reference")
    )


def test_the_reading_side_has_a_direction() -> None:
    rank = {module: level for level, line in enumerate(READING) for module in line}

    def fine(name: str, target: str) -> bool:
        parts, goal = name.split("."), target.split(".")
        if parts[0] != "genai_bundle" or goal[0] != "genai_bundle" or len(parts) < 2 or len(goal) < 2:
            return True
        if parts[1] not in rank or goal[1] not in rank or (parts[1], goal[1]) == ("bundle", "check"):
            return True
        return rank[goal[1]] <= rank[parts[1]]

    assert not crossings(fine)


def test_the_reading_side_has_no_cycles() -> None:
    names = {module for line in READING for module in line}
    needs: dict[str, set[str]] = {name: set() for name in names}
    for name, target, _ in IMPORTS:
        parts, goal = name.split("."), target.split(".")
        inside = parts[0] == goal[0] == "genai_bundle" and {*parts[1:2], *goal[1:2]} <= names
        if (
            inside
            and len(parts) > 1 < len(goal)
            and parts[1] != goal[1]
            and parts[1:] + goal[1:] != ["bundle", "check"]
        ):
            needs[parts[1]].add(goal[1])
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names the cycle


def test_every_module_of_the_reading_side_has_its_place() -> None:
    named = {module for line in READING for module in line} | {
        "cli",
        "builder",
        "importers",
        "exports",
        "compare",
        "bench",
        "__main__",
    }
    present = {name.split(".")[1] for name in MODULES if within(name, "genai_bundle") and "." in name}
    assert present <= named, f"say in READING where these stand: {sorted(present - named)}"
