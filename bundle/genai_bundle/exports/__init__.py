# SPDX-License-Identifier: Apache-2.0
"""One module for each target of `export`, found by being here: no list to edit. A module that is a target has

TARGET: its name, as in `--to NAME`; TITLE: what it writes, in a few words;
plan(bundle, variant, adapter) -> Plan: everything that the folder will hold, or a UsageError that says what the target
cannot express. Nothing is written before all of it is known.

This package stands on the reading side: it knows the format, and no engine, but for the target whose format only its
engine writes.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from genai_bundle import __version__
from genai_bundle.errors import UsageError
from genai_bundle.records import DOCS_FOLDER
from genai_bundle.staging import created, staged_folder
from genai_bundle.writer import Source, blocks

if TYPE_CHECKING:
    import onnx

    from genai_bundle.bundle import Bundle
    from genai_bundle.manifest import Manifest

MARK = "genai-bundle-export.json"
"""Tells where a folder came from; and a folder that has it may be replaced."""

AUTO = "auto"
PORTABLE = "portable"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """A folder before it is written.

    variant: the form of the graphs that was taken. files: what it holds, by path. models: the graphs among them, by
    path, which are checked when they are on disk. lost: one line for each thing of the bundle that the target has no
    place for.
    """

    variant: str
    files: Mapping[str, Source]
    models: Mapping[str, onnx.ModelProto]
    lost: Sequence[str]


class Target(Protocol):
    """A module of this package."""

    TARGET: str
    TITLE: str

    def plan(self, bundle: Bundle, variant: str, adapter: str | None = None) -> Plan:
        """What to write. `variant` is `auto`, `portable` or a variant's name; `adapter` is fixed into the graphs.

        Raises UsageError.
        """
        ...


def targets() -> dict[str, Target]:
    """All targets by name."""
    modules: list[Any] = [import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    return {module.TARGET: module for module in modules if hasattr(module, "TARGET")}


def choose(name: str) -> Target:
    """The target called `name`. Raises UsageError."""
    known = targets()
    if name not in known:
        raise UsageError(f"there is no target {name!r}", where="--to", hint=f"Known: {', '.join(known)}")
    return known[name]


def write(
    bundle: Bundle,
    target: Target,
    plan: Plan,
    folder: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the plan's files and return their size. The folder appears when it is complete, never on an error.

    With `overwrite` a folder that an export wrote, or an empty one, is replaced; any other is left alone and refused.
    """
    about = {
        "bundle": {"name": bundle.manifest.name, "id": bundle.id},
        "exporter": {"name": "genai-bundle", "version": __version__},
        "target": target.TARGET,
        "variant": plan.variant,
        "lost": list(plan.lost),
    }
    files: dict[str, Source] = {
        **{path: model.SerializeToString(deterministic=True) for path, model in plan.models.items()},
        **plan.files,
        MARK: as_json(about),
    }
    total, done = sum(map(size, files.values())), 0

    def check(staged: Path) -> None:
        import onnx.checker

        for path in plan.models:
            onnx.checker.check_model(str(staged / path))

    with staged_folder(folder, overwrite, check, marks=(MARK,), what="no folder of an export") as staged:
        for path, source in files.items():
            with created(staged / path) as file:
                for block in blocks(path, source):
                    file.write(block)
                    done += len(block)
                    if progress is not None:
                        progress(done, total)
    return done


def size(source: Source) -> int:
    """Bytes of a planned file."""
    if isinstance(source, Path):
        return source.stat().st_size
    return len(source) if isinstance(source, bytes) else source.size


def papers(bundle: Bundle) -> dict[str, Source]:
    """Members for people, licences mostly, which go with every form of a model."""
    return {path: bundle.read(path) for path in bundle.manifest.files if path.startswith(DOCS_FOLDER)}


def common_losses(manifest: Manifest, variant: str) -> list[str]:
    """What a bundle has and a folder of other programs has no place for."""
    names = {one.name for graph in manifest.graphs.values() for one in graph.variants}
    forms = [f"graphs: the form {name!r}, as {variant!r} was taken" for name in sorted({PORTABLE, *names} - {variant})]
    tests = [f"tests: {len(manifest.tests)} golden vectors have no place in it"] if manifest.tests else []
    prefixes = [f"prefixes: {len(manifest.prefixes)} have no place in it"] if manifest.prefixes else []
    return [*tests, *prefixes, *forms]


def as_json(value: Any) -> bytes:
    """A JSON file for people and programs."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
