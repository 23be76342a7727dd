# SPDX-License-Identifier: Apache-2.0
"""Models of several graphs: each is a small torch module around the model, traced with two samples of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import onnx_ir as ir
import torch
import transformers

from genai_bundle.builder import tidy
from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters import Export
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.exporters.skeleton import construct
from genai_bundle.builder.exporters.tracing import NAME, bind, trace, traceable
from genai_bundle.errors import SourceError

Axes = Sequence[str | None]


@dataclass(frozen=True)
class Part:
    """One graph of a model.

    module: holds the model as `model`; its outputs are a dictionary, by the names of the ports.
    first, second: arguments by the names of the ports, nested dictionaries joined by points. Lengths that a request
        decides differ between the two, and no length is 1.
    axes: patterns of port names, with the names of the axes; None for an axis that is static.
    spread: input ports of the shape of `input_ids` which may have the length 1 instead, for one value everywhere.
    """

    module: Any
    first: Mapping[str, Any]
    second: Mapping[str, Any]
    axes: Mapping[str, Axes]
    spread: Sequence[str] = ()


def export_parts(
    checkpoint: Checkpoint,
    auto: Any,
    parts: Callable[[Any], Mapping[str, Part]],
    state: Mapping[str, Mapping[str, Any]] | None = None,
) -> Export:
    """The graphs of a checkpoint, sharing the weights that they have in common.

    Args:
        auto: the class of transformers that chooses the model's class by its config.
        parts: given the model, its graphs by name.

    Raises:
        SourceError: transformers does not know the model or cannot trace it, or the checkpoint lacks a tensor.
    """
    graphs = {}
    with quiet(), torch.no_grad():
        model = construct(checkpoint.path, auto)
        weights = {f"model.{name}": tensor for name, tensor in bind(model, checkpoint).items()}
        with traceable():
            made = parts(model)
        for name, part in made.items():
            program = trace(part.module, weights, part.first, part.second)
            _finish(program, part, name)
            graphs[name] = program
    return Export(graphs, state or {}, NAME, transformers.__version__)


def _finish(program: ir.Model, part: Part, name: str) -> None:
    names: dict[str, str] = {}
    for value in (*program.graph.inputs, *program.graph.outputs):
        axes = next((axes for pattern, axes in part.axes.items() if fnmatchcase(str(value.name), pattern)), None)
        shape = list(value.shape or [])
        if axes is None or len(axes) != len(shape):
            raise SourceError(f"the exported graph has the port '{value.name}' {shape}, which was not expected")
        for dim, axis in zip(shape, axes, strict=True):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None and axis is not None:
                names.setdefault(dim.value, axis)
            elif axis is not None or not isinstance(dim, int):
                raise SourceError(f"the exporter gave '{value.name}' the shape {shape}, expected {list(axes)}")
    for mask in part.spread:
        if "mask" in mask:
            tidy.simplify_padding_mask(program, mask)
    tidy.state_lengths(program)
    tidy.name_axes(program, names)
    for port in part.spread:
        tidy.spread_input(program, port, "input_ids")
    tidy.finish(program)
    program.graph.name = name
