# SPDX-License-Identifier: Apache-2.0
"""Which ONNX files a folder has, and in which forms: `model.onnx`, `onnx/model_q4.onnx`, `model.onnx_data`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genai_bundle.errors import SourceError
from genai_bundle.importers.graphs import SourceGraph, read_graph

NAMES = ("model", "decoder_model_merged", "decoder_model", "encoder_model")
"""Graphs that a pipeline is made of; each may come in several forms."""

FORM = re.compile(r"(fp16|fp32|q4|q4f16|q8|int8|uint8|bnb4|quantized|q8f16|O[1-4]|optimized|q[u]?int8_[a-z0-9_]+)")


@dataclass(frozen=True)
class Files:
    """graphs: for each name the file of each form, "" being the one without an ending."""

    graphs: Mapping[str, Mapping[str, Path]]

    @property
    def names(self) -> list[str]:
        return list(self.graphs)

    def read(self, name: str, graph: str, suffix: str | None) -> SourceGraph:
        """The graph in the form that the user wants, else without an ending, else in its only one."""
        forms = self.graphs[name]
        wanted = (suffix or "").removeprefix("_")
        if suffix is None and wanted not in forms and len(forms) == 1:
            wanted = next(iter(forms))
        if wanted not in forms:
            raise SourceError(
                f"there is no {name}{f'_{wanted}' if wanted else ''}.onnx",
                where=next(iter(forms.values())).parent.name,
                hint=f"Choose a form with --dtype-suffix: {', '.join(form or 'none' for form in sorted(forms))}",
            )  # fmt: skip
        return read_graph(graph, forms[wanted])


def find_files(path: Path) -> Files | None:
    """The graphs of a folder, or of its folder `onnx`; None where there are none."""
    for folder in (path / "onnx", path):
        found: dict[str, dict[str, Path]] = {}
        for file in sorted(folder.glob("*.onnx")) if folder.is_dir() else ():
            for name in NAMES:
                ending = file.stem.removeprefix(name)
                if file.stem.startswith(name) and (not ending or FORM.fullmatch(ending.removeprefix("_"))):
                    found.setdefault(name, {})[ending.removeprefix("_")] = file
        if found:
            return Files(found)
    return None
