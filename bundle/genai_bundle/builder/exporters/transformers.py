# SPDX-License-Identifier: Apache-2.0
"""A causal language model through transformers' own ONNX exporter, as one decoder graph for prefill and step alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
import transformers

from genai_bundle.builder import tidy
from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters import KV_STATE, Export, HeadError, heads, states
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.exporters.recurrence import as_scans
from genai_bundle.builder.exporters.skeleton import construct, sample
from genai_bundle.builder.exporters.tracing import NAME, Weights, bind, dropped, trace, traceable
from genai_bundle.errors import SourceError

BATCH, SEQUENCE, PAST = 2, 3, 5
"""The traced sample. Three different numbers, none of them 1, so that no axis is mistaken for another or frozen."""

_CACHE = re.compile(r"(?:\w+\.)+layers\.(\d+)\.(keys|values|conv_states|recurrent_states)(?:\.(\d+))?")
"""A cache's tensor among the ports. What comes before `layers` changes with the release of transformers."""

_FIELDS = {"keys": "key", "values": "value", "conv_states": "conv", "recurrent_states": "recurrent"}


def export_decoder(checkpoint: Checkpoint) -> Export:
    """The decoder graph of a checkpoint, with its weights referring to the checkpoint's tensors.

    Raises:
        SourceError: transformers does not know the model, or the checkpoint lacks one of its tensors.
    """
    return _export(checkpoint, SEQUENCE, SEQUENCE + 3)


def export_steps(checkpoint: Checkpoint) -> Export:
    """The same, one token a run: for recurrences that are not exported over a whole text (see recurrence.py).

    A runner feeds the prompt token by token then, which is right and slow.

    Raises:
        SourceError: as `export_decoder`; the model has no recurrence.
    """
    return _export(checkpoint, 1, 1)


def _export(checkpoint: Checkpoint, *sequences: int) -> Export:
    """Traced with samples of these lengths; the axis is dynamic where they differ."""
    with quiet(), torch.no_grad():
        model = construct(checkpoint.path)
        weights = bind(model, checkpoint)
        program = _trace(model, weights, sequences)
    _name_ports(program)
    hidden = tidy.slice_before_head(program, indices="logits_to_keep", count="num_logits")
    kept, idle = states(program), dropped(model, checkpoint, program)
    graphs = {"decoder": program}
    if own := heads.stored(model, checkpoint):
        graphs["head"], unused = _head(model, checkpoint, weights, program, hidden)
        kept = {**kept, "head_kv": {**KV_STATE, "graph": "head"}}
        idle = [name for name in idle if name in unused or name not in own]
    for name, graph in graphs.items():
        tidy.simplify_padding_mask(graph, "attention_mask")
        tidy.finish(graph)
        graph.graph.name = name
    return Export(graphs, kept, NAME, transformers.__version__, idle)


def _head(
    model: Any, checkpoint: Checkpoint, weights: Weights, decoder: ir.Model, hidden: ir.Value
) -> tuple[ir.Model, list[str]]:
    """The graph of the checkpoint's head, whose values the decoder gives then; and tensors of heads without a use.

    Raises HeadError, whatever is wrong with it: the model can be built without.
    """
    width = hidden.shape[2] if hidden.shape is not None else None
    try:
        if states(decoder) != {"kv": KV_STATE} or not isinstance(width, int):
            raise SourceError("the model's states cannot forget guesses")
        with quiet(), torch.no_grad():
            head = heads.construct_head(model)
            bound, unused = heads.bind_head(head, model, checkpoint, weights)
            sizes = (BATCH, SEQUENCE, PAST), (BATCH + 2, SEQUENCE + 3, PAST + 4)
            program = heads.trace_head(head, bound, width, *sizes)
        _name_ports(program, inputs=("hidden_before",), outputs=("hidden",))
        tidy.slice_before_head(program, indices="logits_to_keep", count="num_logits")
    except SourceError as error:
        raise HeadError(error.message, where=error.where) from error
    hidden.name = "hidden"
    decoder.graph.outputs.append(hidden)
    return program, unused


def _trace(model: Any, weights: Weights, sequences: Sequence[int]) -> ir.Model:
    with traceable():
        first = sample(model, BATCH, sequences[0], PAST)
        second = sample(model, BATCH + 2, sequences[-1], PAST + 4)
    cache: Any = first.get("cache", first.get("past_key_values"))
    if sequences[0] == 1 and not any(hasattr(layer, "recurrent_states") for layer in cache.layers):
        raise SourceError("the model has no recurrence that would need steps of one token", where="config.json")
    with as_scans(model):
        return trace(model, weights, first, second)


def _is_past(value: ir.Value) -> bool:
    return str(value.name).startswith("past_key_values.")


def _name_ports(model: ir.Model, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> None:
    """Name states as the field does, drop outputs that only repeat an input, and give the dynamic axes their names."""
    for value in model.graph.inputs:
        if match := _CACHE.fullmatch(value.name or ""):
            value.name = f"past_key_values.{match[1]}.{_FIELDS[match[2]]}{int(match[3] or 0) or ''}"
    for value in list(model.graph.outputs):
        producer = value.producer()
        if producer is None or (producer.op_type == "Identity" and producer.inputs[0] in model.graph.inputs):
            model.graph.outputs.remove(value)
        elif match := _CACHE.fullmatch(value.name or ""):
            value.name = f"present.{match[1]}.{_FIELDS[match[2]]}{int(match[3] or 0) or ''}"
        elif value.name not in ("logits", *outputs):
            raise SourceError(f"the exported graph has the output '{value.name}', a state of a kind not built yet")
    tidy.drop_unused(model)
    for value in [value for value in model.graph.inputs if not value.uses() and not _is_past(value)]:
        model.graph.inputs.remove(value)  # a counter of a cache class, or positions that the model does not use
    ports = {str(value.name): value for value in model.graph.inputs}
    known = {"input_ids", "attention_mask", "position_ids", "logits_to_keep", *inputs}
    strange = [name for name, value in ports.items() if name not in known and not _is_past(value)]
    if strange or not {"input_ids", "logits_to_keep", *inputs} <= ports.keys():
        raise SourceError(f"the exported graph has the inputs {sorted(ports)}, expected {sorted(known)}")
    _name_axes(model, ports)


def _name_axes(model: ir.Model, inputs: Mapping[str, ir.Value]) -> None:
    ids = inputs["input_ids"]
    names, sequence = {_dim(ids, 0): "batch"}, "1"
    if ids.shape is not None and ids.shape[1] != 1:
        sequence = _dim(ids, 1)
        names |= {sequence: "sequence", _dim(inputs["logits_to_keep"], 0): "num_logits"}
    for held in {_dim(value, 2) for name, value in inputs.items() if name.endswith((".key", ".value"))}:
        # Layers of different kinds have caches whose lengths the tracer does not know to be equal.
        names |= {held: "past", f"{held} + {sequence}": "total", f"{sequence} + {held}": "total"}
    if not any(map(_is_past, inputs.values())):
        raise SourceError("the exported graph has no cache")
    tidy.name_axes(model, names)
    if "attention_mask" in inputs:
        inputs["attention_mask"].shape = ir.Shape(["batch", "total"])


def _dim(value: ir.Value, axis: int) -> str:
    dim = value.shape[axis] if value.shape is not None else None
    if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
        raise SourceError(f"the exporter froze axis {axis} of '{value.name}' to {dim}, expected a dynamic one")
    return dim.value
