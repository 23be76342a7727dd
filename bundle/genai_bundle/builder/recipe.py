# SPDX-License-Identifier: Apache-2.0
"""A bundle from a recipe: the manifest's document as YAML with file names and short forms (spec/manifest.md, Recipes).

Graphs that exist already are packed, not made: nothing here needs PyTorch. The bundle takes its name only when it opens
as readers open it and its own tests give what the recipe says, on every variant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from jsonschema.exceptions import best_match

from genai_bundle import FORMAT_VERSION
from genai_bundle.builder.compact import parse_type
from genai_bundle.builder.graph_files import adapter_member, external_files, pack_graph, parse_text, read_file, used
from genai_bundle.builder.portable_form import ORT, lowered, original_variant
from genai_bundle.builder.recipe_file import RecipeFile, read_recipe_file
from genai_bundle.builder.report import Report
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import InvalidBundle, SourceError
from genai_bundle.schemas import validator
from genai_bundle.writer import Source, write_bundle

Progress = Callable[[str], None]


def build_recipe(
    recipe: Path,
    target: Path,
    *,
    overwrite: bool = False,
    details: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> str:
    """Build the bundle file `target` from a recipe and return the bundle's id.

    details: replace keys of the recipe such as `name`, `license`, `description`. progress: is told what is done next.

    Raises SourceError where the recipe or a file it names cannot be used, InvalidBundle where what it says is against
    the format (both name the recipe's line), ProofError where one of its tests gives another result.
    """
    source = read_recipe_file(recipe)
    tell = progress or (lambda _: None)
    tell("reading graphs")
    try:
        manifest, members = assemble(source, details or {}, tell)

        def prove(path: Path) -> None:
            from genai_bundle.builder.prove import prove_tests  # late: brings the runner and its engines

            tell("checking")
            open_bundle(path).close()
            tell("running the tests")
            Report.of(progress).tested(prove_tests(path))

        tell("writing")
        return write_bundle(target, manifest, members, overwrite=overwrite, before_commit=prove)
    except InvalidBundle as error:
        source.locate(error)
        raise


def assemble(
    source: RecipeFile, details: Mapping[str, str], tell: Progress = lambda _: None
) -> tuple[dict[str, Any], dict[str, Source]]:
    """The manifest without `files`, and the members. Raises SourceError."""
    check_shape(source)
    manifest: dict[str, Any] = {"format": FORMAT_VERSION, **copy.deepcopy(dict(source.document)), **details}
    members: dict[str, Source] = {}
    for section in ("inputs", "outputs"):
        for name, declared in manifest[section].items():
            if isinstance(declared, str):
                manifest[section][name] = _expand(source, declared, f"{section}.{name}")
    defaults: list[onnx.ModelProto] = []
    for name, entry in manifest.setdefault("graphs", {}).items():
        manifest["graphs"][name] = _graph(source, name, entry, members, defaults, manifest, tell)
    for name, adapter in manifest.get("adapters", {}).items():
        _adapter(source, name, adapter["graphs"], members)
    needs = [feature for feature in used(defaults) if feature not in manifest.get("requires", [])]
    if needs:
        manifest["requires"] = [*manifest.get("requires", []), *needs]
    _add_assets(source, manifest, members)
    manifest["source"] = {**manifest.get("source", {}), "files": source.digests()}
    return manifest, members


def _add_assets(source: RecipeFile, manifest: dict[str, Any], members: dict[str, Source]) -> None:
    """Make members of the files that `text` and `tests` name."""
    text = manifest.get("text", {})
    for key in ("tokenizer", "template"):
        if key in text:
            path = _file(source, text[key], f"text.{key}")
            text[key] = _member(source, members, path, path.name, f"text.{key}")
    for index, test in enumerate(manifest.get("tests", [])):
        for side in ("in", "out"):
            for name, value in test[side].items():
                if isinstance(value, dict):
                    where = f"tests[{index}].{side}.{name}.file"
                    path = _file(source, value["file"], where)
                    value["file"] = _member(source, members, path, f"tests/{path.name}", where)


def check_shape(source: RecipeFile) -> None:
    """Compare a recipe with `schema/v1/recipe.schema.json`. Raises SourceError that names the most telling mistake."""
    error = best_match(validator("recipe.schema").iter_errors(source.document))
    if error is None:
        return
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    message = error.message if len(error.message) <= 200 else f"{error.message[:200]}…"
    hint = "The shape of a recipe is in spec/manifest.md, Recipes"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in known and not key.startswith("x-"))
        where, message, hint = (
            f"{where}.{unknown}".lstrip("."),
            f"unknown key {unknown!r}",
            f"Known here: {', '.join(known)}",
        )
    elif error.validator == "pattern" and "description" in error.schema:
        message = f"{error.instance!r} is not of a form such as {error.schema['description']}"
    raise source.error(message, where, hint)


def _expand(source: RecipeFile, declared: str, where: str) -> dict[str, Any]:
    try:
        return parse_type(declared)
    except ValueError as error:
        raise source.error(str(error), where) from error


def _graph(
    source: RecipeFile,
    name: str,
    entry: Any,
    members: dict[str, Source],
    defaults: list[onnx.ModelProto],
    manifest: dict[str, Any],
    tell: Progress,
) -> dict[str, Any]:
    """A graph's entry in the manifest; its files and shards join `members`, its default model `defaults`."""
    entry = {"file": entry} if isinstance(entry, str) else entry
    where = f"graphs.{name}"
    files = {f"{name}.onnx": _model(source, entry, where)}
    model, folder, place = files[f"{name}.onnx"]
    expanded = {key: value for key, value in entry.items() if key != "onnx"} | {"file": f"{name}.onnx"}
    taken = any(variant["name"] == ORT for variant in entry.get("variants", []))
    portable = None if taken else lowered(name, model, folder, manifest, tell)
    defaults.append(portable or model)
    for index, variant in enumerate(entry.get("variants", [])):
        file = f"{name}.{variant['name']}.onnx"
        files[file] = _model(source, variant, f"{where}.variants[{index}]")
        changed = {key: value for key, value in variant.items() if key != "onnx"} | {"file": file}
        expanded["variants"] = [*expanded["variants"][:index], changed, *expanded["variants"][index + 1 :]]
    if portable is not None:
        files |= {f"{name}.onnx": (portable, folder, place), f"{name}.{ORT}.onnx": (model, folder, place)}
        original = original_variant(name, f"{name}.{ORT}.onnx", manifest.get("state", {}))
        expanded["variants"] = [*expanded.get("variants", []), original]
    try:
        graphs, shards = pack_graph(name, files)
    except SourceError as error:
        error.where = source.place(error.where or where)
        raise
    members |= graphs
    members |= shards
    return expanded


def _adapter(source: RecipeFile, name: str, graphs: dict[str, Any], members: dict[str, Source]) -> None:
    """An adapter's models join `members`, and the manifest names those."""
    files = {}
    for graph, entry in graphs.items():
        entry = {"file": entry} if isinstance(entry, str) else entry
        graphs[graph] = adapter_member(name, graph)
        files[graphs[graph]] = _model(source, entry, f"adapters.{name}.graphs.{graph}")
    packed, shards = pack_graph(f"adapter-{name}", files)
    members |= packed
    members |= shards


def _model(source: RecipeFile, entry: Mapping[str, Any], where: str) -> tuple[onnx.ModelProto, Path | None, str]:
    """A model, the folder of its external data, and where the recipe names it."""
    try:
        if "onnx" in entry:
            where = f"{where}.onnx"
            return parse_text(entry["onnx"], where), None, where
        where = f"{where}.file" if f"{where}.file" in source.lines else where
        path = _file(source, entry["file"], where)
        model = read_file(path, where)
        for name in external_files(model):
            source.file((PurePosixPath(entry["file"]).parent / name).as_posix())
        return model, path.parent, where
    except SourceError as error:
        if not (error.where or "").startswith(source.path.name):
            error.where = source.place(error.where or where)
        raise


def _file(source: RecipeFile, name: str, where: str) -> Path:
    path = source.file(name)
    if not path.is_file():
        hint = "File names are relative to the recipe's folder"
        raise source.error(f"there is no file {name}", where, hint)
    return path


def _member(source: RecipeFile, members: dict[str, Source], path: Path, member: str, where: str) -> str:
    """Make `path` a member. Two files of one name are refused: renaming one silently would surprise."""
    known = members.get(member)
    if known is not None and not (isinstance(known, Path) and known.resolve() == path.resolve()):
        raise source.error(f"two files would be the member {member}", where, "Rename one")
    members[member] = path
    return member
