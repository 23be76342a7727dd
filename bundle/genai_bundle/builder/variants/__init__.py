# SPDX-License-Identifier: Apache-2.0
"""One file per variant: the portable graph rewritten into a backend's fastest form, over the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir


def with_variants(
    graphs: Mapping[str, ir.Model], states: Mapping[str, Mapping[str, Any]], tell: Callable[[str], None]
) -> tuple[dict[str, ir.Model], dict[str, dict[str, Any]]]:
    """All files of the bundle's graphs, and the entries of the manifest's `graphs` that name them.

    Args:
        states: the manifest's `state`; what grows becomes a shared buffer in a variant.

    Returns:
        Models by member path, the portable ones as given, and entries by graph name.
    """
    from genai_bundle.builder.variants import ort_gqa

    models: dict[str, ir.Model] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, portable in graphs.items():
        models[f"{name}.onnx"], entries[name] = portable, {"file": f"{name}.onnx"}
        variant, reason = ort_gqa.make_variant(portable)
        if variant is None:
            tell(f"no variant of {name} for ONNX Runtime: {reason}")
            continue
        tell(f"{name} has a variant for ONNX Runtime")
        models[f"{name}.ort-cpu.onnx"] = variant
        when = {"backend": "onnxruntime", "device": "cpu"}
        grown = [own for own, entry in states.items() if (entry["graph"], entry["update"]) == (name, "append")]
        state = {own: {"update": "shared"} for own in grown}
        entries[name]["variants"] = [{"name": "ort-cpu", "when": when, "file": f"{name}.ort-cpu.onnx", "state": state}]
    return models, entries
