# SPDX-License-Identifier: Apache-2.0
"""A torch module as a graph through transformers' own ONNX exporter, with weights that stay in the checkpoint.

The exporter declares itself experimental. This file therefore touches its `export(...).program` only, does the rest on
the graph, and nothing that leaves here is believed before `builder.prove` has compared it with the model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import optimizer
from onnxscript.rewriter import onnx_fusions
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters.conversion import convert
from genai_bundle.builder.exporters.skeleton import dynamic_axes, fake_parameters, parameter_names
from genai_bundle.builder.lazy import Weight, graph_tensor, same_values
from genai_bundle.builder.tensors import WeightTensor
from genai_bundle.errors import SourceError

OPSET = 23
"""The first with Attention, RMSNormalization and RotaryEmbedding; 24 makes the exporter lose the last two again."""

NAME = "transformers.exporters.OnnxExporter"

Weights = Mapping[str, ir.TensorProtocol]


def bind(model: Any, checkpoint: Checkpoint) -> Weights:
    """Make a constructed model ready to be traced. For each of its parameters, the checkpoint's tensor.

    Raises:
        SourceError: the checkpoint lacks a tensor, or holds one of another shape.
    """
    held, _ = convert(model, checkpoint.tensors)
    fake_parameters(model, lambda names: _differ(names, held))
    return match_weights(model, checkpoint, held)


def dropped(model: Any, checkpoint: Checkpoint, graph: ir.Model) -> list[str]:
    """Tensors of the checkpoint that a traced model has no use for: of another tower, of heads for training, of old."""
    held, strange = convert(model, checkpoint.tensors)
    used = graph.graph.initializers.keys()
    aliases = parameter_names(model)
    idle = [
        weight.name
        for name, weight in held.items()
        if not any(held[other].name in used for other in [name, *aliases.get(name, [])] if other in held)
    ]
    return sorted({*strange, *(name for name in idle if name in checkpoint.tensors)})


def trace(module: Any, weights: Weights, first: Mapping[str, Any], second: Mapping[str, Any]) -> ir.Model:
    """The graph of `module`, whose axes are dynamic where the two samples of its arguments differ.

    Raises:
        SourceError: the tracer cannot follow the module's code.
    """
    # optimize=False: the optimiser would read the weights. The same passes run below, with the weights out of sight.
    config = OnnxConfig(opset_version=OPSET, optimize=False, dynamic_shapes=dynamic_axes(first, second))
    with traceable():
        program = OnnxExporter().export(module, dict(first), config).program
    assert isinstance(program, ir.Model)
    _detach_weights(program, weights)
    optimizer.optimize_ir(program)
    onnx_fusions.fuse(program)
    _attach_weights(program, weights)
    return program


@contextmanager
def traceable() -> Iterator[None]:
    """Inside, whatever torch raises on code that it cannot run without weights or follow is the model's fault."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise SourceError(f"the exporter cannot trace this model: {reason}", where="config.json") from error


def _differ(names: list[str], held: Mapping[str, Weight]) -> bool:
    """Whether the checkpoint holds different weights under names that the config ties."""
    weights = [held[name] for name in names if name in held]
    return any(not same_values(weights[0], other) for other in weights[1:])


def match_weights(
    model: Any, checkpoint: Checkpoint, held: Mapping[str, Weight] | None = None, known: Weights | None = None
) -> Weights:
    """For every parameter (and stored buffer) of the model, its tensor in the checkpoint, save for those `known`."""
    if held is None:
        held, _ = convert(model, checkpoint.tensors)
    files = ", ".join(sorted({tensor.file for tensor in checkpoint.tensors.values()}))
    found: dict[str, ir.TensorProtocol] = dict(known or {})
    groups = parameter_names(model)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    stored = {name: tuple(value.shape) for name, value in model.named_buffers() if name in held}
    for name, shape in (shapes | stored).items():
        if name in found:
            continue
        weight = next((held[other] for other in [name, *groups.get(name, [])] if other in held), None)
        computed = _computed(model, name) if weight is None else None
        if computed is not None:
            found[name] = computed
            continue
        if weight is None:
            raise SourceError(
                f"the model needs the tensor '{name}', which the checkpoint lacks", where=files,
                hint="The checkpoint is incomplete or another model's",
            )  # fmt: skip
        if weight.shape != shape:
            raise SourceError(
                f"has the shape {list(weight.shape)}, but config.json describes {list(shape)}", where=weight.where
            )
        found[name] = graph_tensor(weight)
    return found


def _computed(model: Any, name: str) -> WeightTensor | None:
    """A parameter that no checkpoint of the family stores, for the model's code computes it: a table of sines."""
    if not any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_missing or []):
        return None
    path, _, last = name.rpartition(".")
    made = []
    for _ in range(2):
        module = copy.copy(model.get_submodule(path))  # with parameters of its own, in real memory
        module._parameters = {
            key: torch.nn.Parameter(torch.empty(value.shape), requires_grad=False)
            for key, value in module._parameters.items()
            if value is not None
        }
        model._init_weights(module)
        made.append(module.get_parameter(last).detach().numpy())
    if not np.array_equal(*made):
        return None  # drawn at random, so not what the model was trained with
    return WeightTensor(name, made[0].shape, ir.DataType.FLOAT, lambda part: made[0][part])


def _detach_weights(model: ir.Model, weights: Weights) -> None:
    """Let the weights be inputs for a while: the optimiser neither folds, merges nor reads an input."""
    for name in [name for name in model.graph.initializers if name in weights]:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)


def _attach_weights(model: ir.Model, weights: Weights) -> None:
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        tensor = weights[value.name or ""]
        name = str(tensor.name)  # a tied parameter bears the name under which the checkpoint stores it
        if name in model.graph.initializers:
            ir.convenience.replace_all_uses_with(value, model.graph.initializers[name])
            continue
        value.const_value, value.name = tensor, name
        model.graph.register_initializer(value)
