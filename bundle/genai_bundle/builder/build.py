# SPDX-License-Identifier: Apache-2.0
"""From whatever a person has to a bundle: say what it is, then let its builder work.

A foreign layout is one module of `importers` with `recognises(path)`; a recipe is a YAML file, and any other folder is
taken for a checkpoint.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from genai_bundle import importers
from genai_bundle.builder import hub
from genai_bundle.builder.options import BuildOptions
from genai_bundle.builder.report import Report
from genai_bundle.errors import UsageError

Progress = Callable[[str], None]

RECIPE_SUFFIXES = (".yaml", ".yml")

HINT = "Give a checkpoint folder, a folder of ONNX graphs, a GGUF file or a recipe"


def build(source: Path, target: Path, options: BuildOptions | None = None, progress: Progress | None = None) -> str:
    """Build the bundle file `target` from `source` and return the bundle's id. A `Report` as `progress` is filled.

    Args:
        source: a file, a folder, or `org/name`, a repository that the user's Hugging Face cache holds.

    Raises:
        UsageError: an option means nothing, nothing recognises the source, or the target exists already.
        SourceError, ProofError, InvalidBundle: see the builders. Nothing is written.
    """
    options, tell = options or BuildOptions(), Report.of(progress)
    options.check()
    if not source.exists() and hub.is_repository(source):
        name, source = source, hub.cached_snapshot(source.as_posix())
        tell(f"found {name} in the Hugging Face cache")
        tell.published = {"repo": name.as_posix(), "revision": source.name}
        options = replace(options, details={"name": name.name, **options.details})
    if not source.exists():
        raise UsageError("there is no such file or folder", where=str(source), hint=HINT)
    if target.exists() and not options.overwrite:
        raise UsageError("exists already", where=str(target), hint="Give --force (overwrite=True) to replace it")
    if options.draft is not None:
        from genai_bundle.builder.draft import build_with_draft

        return build_with_draft(source, target, options, tell)
    for module in sorted(entry.name for entry in pkgutil.iter_modules(importers.__path__)):
        importer = import_module(f"{importers.__name__}.{module}")
        if hasattr(importer, "recognises") and importer.recognises(source):
            tell.recognised(importer.LAYOUT, source)
            if hasattr(importer, "build"):
                identity: str = importer.build(source, target, options, tell)
                return identity
            importers.check_options(options, importer.LAYOUT)
            return importers.finish(importer.assemble(source, options, tell), target, options, tell)
    if source.is_file() and source.suffix.lower() in RECIPE_SUFFIXES:
        from genai_bundle.builder.recipe import build_recipe

        tell.recognised("a recipe", source)
        importers.check_options(options, "a recipe")
        return build_recipe(source, target, overwrite=options.overwrite, details=options.details, progress=tell)
    if not source.is_dir():
        raise UsageError("is neither a folder nor a recipe (.yaml)", where=str(source), hint=HINT)
    from genai_bundle.builder.from_checkpoint import build_checkpoint

    tell.recognised("a checkpoint folder", source)
    return build_checkpoint(source, target, options, tell)
