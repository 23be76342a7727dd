# SPDX-License-Identifier: Apache-2.0
"""A causal language model through transformers' own ONNX exporter, as one decoder graph for prefill and step alike."""

from __future__ import annotations

import re
from typing import Any

import onnx_ir as ir
import torch
import transformers

from genai_bundle.builder import tidy
from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters import KV_STATE, Export
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.exporters.skeleton import construct, sample
from genai_bundle.builder.exporters.tracing import NAME, Weights, bind, trace, traceable
from genai_bundle.errors import SourceError

BATCH, SEQUENCE, PAST = 2, 3, 5
"""The traced sample. Three different numbers, none of them 1, so that no axis is mistaken for another or frozen."""

_CACHE = re.compile(r"(?:\w+\.)+layers\.(\d+)\.(keys|values)")
"""A cache's tensor among the ports. What comes before `layers` changes with the release of transformers."""


def export_decoder(checkpoint: Checkpoint) -> Export:
    """The decoder graph of a checkpoint, with its weights referring to the checkpoint's tensors.

    Raises:
        SourceError: transformers does not know the model, or the checkpoint lacks one of its tensors.
    """
    with quiet(), torch.no_grad():
        model = construct(checkpoint.path)
        program = _trace(model, bind(model, checkpoint))
    _name_ports(program)
    tidy.slice_before_head(program, indices="logits_to_keep", count="num_logits")
    tidy.simplify_padding_mask(program, "attention_mask")
    tidy.finish(program)
    return Export({"decoder": program}, {"kv": KV_STATE}, NAME, transformers.__version__)


def _trace(model: Any, weights: Weights) -> ir.Model:
    with traceable():
        first = sample(model, BATCH, SEQUENCE, PAST)
        second = sample(model, BATCH + 2, SEQUENCE + 3, PAST + 4)
    return trace(model, weights, first, second)


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
