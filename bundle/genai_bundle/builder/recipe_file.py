# SPDX-License-Identifier: Apache-2.0
"""A recipe's YAML as plain values that remember their lines.

YAML as JSON's superset: only the scalars of YAML 1.2's core schema (`yes`, `12:30` and `2025-01-01` are texts), no
tags, no duplicate keys. So a recipe holds nothing that the manifest's JSON could not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from genai_bundle.errors import GenaiError, SourceError

_MAX_NODES = 200_000  # a recipe is small; aliases of aliases could unfold to anything

_CORE = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):
    """Composes nodes; the scalars are read here and not by YAML 1.1's rules."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own form


for _tag, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


@dataclass(frozen=True)
class RecipeFile:
    """A recipe's values, and the line on which each stands, by document path (`steps[1].generate.do[0]`)."""

    path: Path
    document: Mapping[str, Any]
    lines: Mapping[str, int]
    read: dict[str, Path] = field(default_factory=dict)
    """What was read for it, by name: filled while a bundle is made."""

    def file(self, name: str) -> Path:
        """The file that the recipe calls so; it is taken down as read."""
        path = self.path.parent / name
        plain = PurePosixPath(name)
        known = plain.name if plain.is_absolute() else plain.as_posix()  # a bundle names no folders of its maker's
        while self.read.setdefault(known, path) != path:
            known += "'"
        return path

    def digests(self) -> dict[str, str]:
        """SHA-256, in hex, of the recipe and of every file that was read."""
        found = {}
        for name, path in {**self.read, self.path.name: self.path}.items():
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return dict(sorted(found.items()))

    def place(self, where: str) -> str:
        """`recipe.yaml:12: steps[1].run`, with the line of the nearest value that the recipe holds."""
        near = where
        while near and near not in self.lines:
            near = re.sub(r"(\.[^.\[\]]*|\[[^\]]*\]|^[^.\[\]]*)$", "", near)
        return f"{self.path.name}:{self.lines.get(near, 1)}: {where or 'the recipe'}"

    def error(self, message: str, where: str, hint: str | None = None) -> SourceError:
        """The error to raise for the value at `where`."""
        return SourceError(message, where=self.place(where), hint=hint)

    def locate(self, error: GenaiError) -> None:
        """Put the recipe's line before the document path that an error of the manifest's rules names."""
        error.where = self.place(error.where or "")


def read_recipe_file(path: Path) -> RecipeFile:
    """Read a recipe. Raises SourceError that names the file, the line and what is wrong there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise SourceError(f"cannot read the recipe: {reason}", where=str(path)) from error
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        where = f"{path.name}:{mark.line + 1}" if mark else path.name
        raise SourceError(f"is not YAML: {problem}", where=where) from error
    reader = _Reader(path.name)
    document = reader.value(node, "", 0) if node is not None else None
    if not isinstance(document, dict):
        raise SourceError("is not a recipe, which is a map with name, graphs, inputs, outputs, steps", where=path.name)
    return RecipeFile(path, document, reader.lines)


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[str, int] = {}
        self.count = 0

    def fail(self, node: yaml.Node, message: str, hint: str | None = None) -> SourceError:
        return SourceError(message, where=f"{self.file}:{node.start_mark.line + 1}", hint=hint)

    def value(self, node: yaml.Node, path: str, depth: int) -> Any:
        self.count += 1
        if depth > 64 or self.count > _MAX_NODES:
            raise self.fail(node, "is nested too deeply or unfolds too far", "Write it without aliases")
        # A literal block (`|`) begins on the line after its mark.
        literal = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
        self.lines.setdefault(path, node.start_mark.line + 1 + literal)
        if isinstance(node, yaml.MappingNode):
            return dict(self.items(node, path, depth))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(node.value)]
        return self.scalar(node)

    def items(self, node: yaml.MappingNode, path: str, depth: int) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise self.fail(key_node, "a key is not a text", 'Quote it: "true"')
            if key in seen:
                raise self.fail(key_node, f"the key {key!r} stands here twice in {path or 'the recipe'}")
            seen.add(key)
            yield key, self.value(value_node, f"{path}.{key}".lstrip("."), depth + 1)

    def scalar(self, node: yaml.Node) -> Any:
        text, kind = node.value, node.tag.rpartition(":")[2]
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind in ("int", "float"):
            return int(text) if kind == "int" else float(text)
        raise self.fail(node, f"the tag {node.tag} has no meaning in a recipe", "Write a text, number, list or map")
