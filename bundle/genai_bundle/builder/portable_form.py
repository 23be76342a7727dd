# SPDX-License-Identifier: Apache-2.0
"""The portable form of a recipe's graph that needs ONNX Runtime: it becomes the default, what was there a variant.

Only where the recipe has tests, for those prove both forms, and where it does not itself require the domain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from genai_bundle.builder.graph_files import domains
from genai_bundle.builder.lowering import lower
from genai_bundle.sanitize import CONTRIB

ORT = "ort"
"""The variant that holds a graph as its source has it, where that needs ONNX Runtime."""


def lowered(
    name: str, model: onnx.ModelProto, folder: Path | None, manifest: Mapping[str, Any], tell: Callable[[str], None]
) -> onnx.ModelProto | None:
    """The default graph `name` in portable operators; None where it stays as it is."""
    foreign = domains(model) & CONTRIB
    if not foreign or any(f"domain:{domain}" in manifest.get("requires", ()) for domain in foreign):
        return None
    if not manifest.get("tests"):
        tell(f"graphs.{name} runs on ONNX Runtime only: there are no tests, which could prove a portable form")
        return None
    source = ir.from_proto(model)
    if folder is not None:
        ir.external_data.set_base_dir(source.graph, folder)
    found = lower(source)
    if found.left:
        tell(f"graphs.{name} runs on ONNX Runtime only: {'; '.join(found.left[:3])}")
        return None
    tell(f"graphs.{name} has a portable form: {', '.join(found.changed)}")
    return ir.to_proto(found.model)


def original_variant(name: str, file: str, states: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of the variant that holds the original. Buffers that it shares grow in the portable form: `states`,
    the manifest's, is changed to say so."""
    shared = [key for key, state in states.items() if state["graph"] == name and state.get("update") == "shared"]
    for key in shared:
        states[key]["update"] = "append"
    entry: dict[str, Any] = {"name": ORT, "when": {"backend": "onnxruntime"}, "file": file}
    return entry | ({"state": {key: {"update": "shared"} for key in shared}} if shared else {})
