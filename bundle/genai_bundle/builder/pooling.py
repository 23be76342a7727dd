# SPDX-License-Identifier: Apache-2.0
"""How a folder of sentence-transformers makes one vector of a text: modules.json and the pooling that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_bundle.builder.json_file import read_object
from genai_bundle.errors import SourceError

MODULES, SETTINGS = "modules.json", "sentence_bert_config.json"

MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
"""Keys of a pooling's config, in the order in which their vectors are joined, and the names of the ways today."""


@dataclass(frozen=True)
class Pooling:
    """modes: ways of pooling, whose vectors are joined. normalised: the result is scaled to length 1."""

    modes: tuple[str, ...]
    normalised: bool
    files: tuple[str, ...]


def read_pooling(path: Path) -> Pooling | None:
    """What the folder says, None where it is no folder of sentence-transformers.

    Raises:
        SourceError: it has a module or a way of pooling that is not known here.
    """
    modules = _list(path / MODULES)
    if modules is None:
        return None
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise SourceError(
            f"lists {', '.join(kinds)}, expected Transformer, Pooling and possibly Normalize", where=MODULES
        )
    lowered = (read_object(path / SETTINGS) or {}).get("do_lower_case")
    if lowered:
        raise SourceError("do_lower_case is set, which no tokenizer.json says", where=SETTINGS)
    name = f"{modules[1].get('path')}/config.json"
    modes = _modes(read_object(path / name, required=True) or {}, name)
    return Pooling(modes, len(kinds) == 3, (MODULES, name))


def _modes(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    found = [mode for key, mode in MODES.items() if config.get(key)] if named is None else [named]
    strange = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True and key not in MODES]
    strange += [str(mode) for mode in found if mode not in MODES.values()]
    if strange or not found:
        raise SourceError(
            f"pools by {', '.join(strange) or 'nothing'}, expected {', '.join(MODES.values())}", where=where
        )
    return tuple(found)


def _list(file: Path) -> list[Mapping[str, Any]] | None:
    import json

    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"is not JSON: {error}", where=file.name) from error
    if not isinstance(value, list) or not all(isinstance(module, Mapping) for module in value):
        raise SourceError("is no list of modules", where=file.name)
    return sorted(value, key=lambda module: int(module.get("idx", 0)))
