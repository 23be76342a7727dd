# SPDX-License-Identifier: Apache-2.0
"""What a vector is: a folder with `vector.json` and a bundle, as a file or as a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .packing import MIMETYPE, in_order, manifest_bytes, pack


@dataclass(frozen=True)
class Vector:
    """`files`: what lies beside vector.json. `rule`: the broken rule, None for a valid vector.

    layer: how far a reader has to look: container, manifest, integrity, grammar or graph. schema: the verdict of
    manifest.schema.json on the manifest: valid, invalid, or absent where there is no manifest to be read.
    """

    name: str
    title: str
    files: Mapping[str, bytes]
    rule: str | None = None
    layer: str = "container"
    schema: str = "valid"
    note: str | None = None

    @property
    def folder(self) -> str:
        return f"{'invalid' if self.rule else 'valid'}/{self.name}"

    @property
    def facts(self) -> bytes:
        """The content of vector.json."""
        facts = {"title": self.title, "rule": self.rule, "layer": self.layer, "schema": self.schema, "note": self.note}
        kept = {key: value for key, value in facts.items() if value is not None}
        return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


def file_form(data: bytes) -> dict[str, bytes]:
    return {"bundle.genai": data}


def folder_form(manifest: bytes, members: Mapping[str, bytes], mimetype: bytes = MIMETYPE) -> dict[str, bytes]:
    return {
        f"bundle/{path}": data for path, data in [("mimetype", mimetype), ("manifest.json", manifest), *members.items()]
    }


def packed(document: Mapping[str, Any], members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The file form of a manifest (without `files`) and its members."""
    return file_form(pack(in_order(manifest_bytes(document, members), members)))


def unpacked(document: Mapping[str, Any], members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The folder form of a manifest (without `files`) and its members."""
    return folder_form(manifest_bytes(document, members), members)
