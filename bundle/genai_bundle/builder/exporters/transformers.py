# SPDX-License-Identifier: Apache-2.0
"""A causal language model through transformers' own ONNX exporter, as one decoder graph for prefill and step alike.

The exporter declares itself experimental. This file therefore touches its `export(...).program` only, does the rest on
the graph, and nothing that leaves here is believed before `builder.prove` has compared it with the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
import transformers
from onnxscript import optimizer
from onnxscript.rewriter import onnx_fusions
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from genai_bundle.builder import tidy
from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters import KV_STATE, Export
from genai_bundle.builder.exporters.conversion import convert
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.exporters.skeleton import construct, dynamic_axes, fake_parameters, parameter_names, sample
from genai_bundle.builder.lazy import Weight, graph_tensor, same_values
from genai_bundle.errors import SourceError

OPSET = 23
"""The first with Attention, RMSNormalization and RotaryEmbedding; 24 makes the exporter lose the last two again."""

BATCH, SEQUENCE, PAST = 2, 3, 5
"""The traced sample. Three different numbers, none of them 1, so that no axis is mistaken for another or frozen."""

_CACHE = re.compile(r"(?:\w+\.)+layers\.(\d+)\.(keys|values)")
"""A cache's tensor among the ports. What comes before `layers` changes with the release of transformers."""


def export_decoder(checkpoint: Checkpoint) -> Export:
    """The decoder graph of a checkpoint, with its weights referring to the checkpoint's tensors.

    Raises:
        SourceError: transformers does not know the model, or the checkpoint lacks one of its tensors.
    """
    tensors = checkpoint.tensors
    with quiet(), torch.no_grad():
        model = construct(checkpoint.path)
        held, _ = convert(model, tensors)
        fake_parameters(model, lambda names: _differ(names, held))
        weights = _match(model, held, ", ".join(sorted({tensor.file for tensor in tensors.values()})))
        try:
            program = _trace(model)
        except Exception as error:  # whatever torch's tracer raises on code that it cannot follow
            reason = str(error).strip().split("\n")[0]
            raise SourceError(f"the exporter cannot trace this model: {reason}", where="config.json") from error
        _detach_weights(program, weights)
        optimizer.optimize_ir(program)
        onnx_fusions.fuse(program)
    _attach_weights(program, weights)
    _name_ports(program)
    tidy.slice_before_head(program, indices="logits_to_keep", count="num_logits")
    tidy.simplify_padding_mask(program, "attention_mask")
    tidy.finish(program)
    return Export(
        {"decoder": program}, {"kv": KV_STATE}, "transformers.exporters.OnnxExporter", transformers.__version__
    )


def _trace(model: Any) -> ir.Model:
    first = sample(model, BATCH, SEQUENCE, PAST)
    second = sample(model, BATCH + 2, SEQUENCE + 3, PAST + 4)
    # optimize=False: the optimiser would read the weights. The same passes run later, with the weights out of sight.
    config = OnnxConfig(opset_version=OPSET, optimize=False, dynamic_shapes=dynamic_axes(first, second))
    program = OnnxExporter().export(model, first, config).program
    assert isinstance(program, ir.Model)
    return program


def _differ(names: list[str], held: Mapping[str, Weight]) -> bool:
    """Whether the checkpoint holds different weights under names that the config ties."""
    weights = [held[name] for name in names if name in held]
    return any(not same_values(weights[0], other) for other in weights[1:])


def _match(model: Any, held: Mapping[str, Weight], files: str) -> dict[str, ir.TensorProtocol]:
    """For every parameter (and stored buffer) of the model, its tensor in the checkpoint."""
    found: dict[str, ir.TensorProtocol] = {}
    groups = parameter_names(model)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    stored = {name: tuple(value.shape) for name, value in model.named_buffers() if name in held}
    for name, shape in (shapes | stored).items():
        weight = next((held[other] for other in [name, *groups.get(name, [])] if other in held), None)
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


def _detach_weights(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Let the weights be inputs for a while: the optimiser neither folds, merges nor reads an input."""
    for name in [name for name in model.graph.initializers if name in weights]:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)


def _attach_weights(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> None:
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        tensor = weights[value.name or ""]
        name = str(tensor.name)  # a tied parameter bears the name under which the checkpoint stores it
        if name in model.graph.initializers:
            ir.convenience.replace_all_uses_with(value, model.graph.initializers[name])
            continue
        value.const_value, value.name = tensor, name
        model.graph.register_initializer(value)


def _name_ports(model: ir.Model) -> None:
    """Name states as the field does, drop outputs that only repeat an input, and give the dynamic axes their names."""
    for value in model.graph.inputs:
        if match := _CACHE.fullmatch(value.name or ""):
            value.name = f"past_key_values.{match[1]}.{match[2].removesuffix('s')}"
    for value in list(model.graph.outputs):
        producer = value.producer()
        if producer is None or (producer.op_type == "Identity" and producer.inputs[0] in model.graph.inputs):
            model.graph.outputs.remove(value)
        elif match := _CACHE.fullmatch(value.name or ""):
            value.name = f"present.{match[1]}.{match[2].removesuffix('s')}"
        elif value.name != "logits":
            raise SourceError(f"the exported graph has the output '{value.name}', a state of a kind not built yet")
    tidy.drop_unused(model)
    for value in [value for value in model.graph.inputs if not value.uses() and "._" in str(value.name)]:
        model.graph.inputs.remove(value)  # a private counter of a cache class, which the traced graph does not read
    inputs = {value.name: value for value in model.graph.inputs}
    known = {"input_ids", "attention_mask", "position_ids", "logits_to_keep"}
    strange = [name for name in inputs if name not in known and not str(name).startswith("past_key_values.")]
    if strange or known - inputs.keys():
        raise SourceError(f"the exported graph has the inputs {sorted(map(str, inputs))}, expected {sorted(known)}")
    past = next((value for name, value in inputs.items() if str(name).startswith("past_key_values.")), None)
    if past is None:
        raise SourceError("the exported graph has no cache")
    batch, sequence = _dim(inputs["input_ids"], 0), _dim(inputs["input_ids"], 1)
    held, kept = _dim(past, 2), _dim(inputs["logits_to_keep"], 0)
    names = {batch: "batch", sequence: "sequence", held: "past", kept: "num_logits", f"{held} + {sequence}": "total"}
    tidy.name_axes(model, names | {f"{sequence} + {held}": "total"})
    inputs["attention_mask"].shape = ir.Shape(["batch", "total"])


def _dim(value: ir.Value, axis: int) -> str:
    dim = value.shape[axis] if value.shape is not None else None
    if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
        raise SourceError(f"the exporter froze axis {axis} of '{value.name}' to {dim}, expected a dynamic one")
    return dim.value
