# SPDX-License-Identifier: Apache-2.0
"""The source model as transformers runs it: what every bundle is compared with.

Where a bundle holds weights in another form, the model gets what that form stands for: so its graphs are held to the
same tolerance as those of unchanged weights, and a wrong zero point or a turned block cannot pass as the price of
quantisation.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters import heads
from genai_bundle.builder.exporters.conversion import convert
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.exporters.skeleton import construct
from genai_bundle.builder.exporters.tracing import match_weights
from genai_bundle.builder.lazy import graph_tensor
from genai_bundle.builder.tensors import FLOATS, DerivedTensor, WeightTensor
from genai_bundle.errors import ProofError, SourceError

LOADED = 1 << 30
"""Bytes of float32. A model up to this size is loaded by transformers itself, which proves also which tensor of the
checkpoint is which of the model; a larger one gets its weights from the checkpoint's mapping, module by module."""

LOADED_GGUF = 8 * LOADED
"""The same for a GGUF file: our importer turns its tensors, too, so another reading of them is worth more memory."""


def source_model(checkpoint: Checkpoint, auto: Any = AutoModelForCausalLM) -> Any:
    """The model in float32, attention written out, with the weights of `checkpoint.changed` in place of its own, and
    `checkpoint.adapter` merged into them; where the model is large, beside them.

    Attention is `eager` here and fused in the exported trace on purpose: a mistake that both share is less likely.
    """
    with quiet(), torch.no_grad():
        if checkpoint.adapter is not None and checkpoint.kept:
            raise SourceError("is quantised, and adapters of such cannot be proved yet", where=str(checkpoint.path))
        large = is_large(checkpoint) or (checkpoint.kept and checkpoint.gguf is None)
        model = _streamed(checkpoint, auto) if large else _loaded(checkpoint, auto)
        if checkpoint.adapter is None:
            return model
        from genai_bundle.builder.adapters.merged import beside, merged

        # What PEFT merges into has to be there.
        return (beside if large else merged)(model, checkpoint.adapter)


def source_head(model: Any, checkpoint: Checkpoint) -> Any:
    """The first head for multi-token prediction of a model that `source_model` gave, as transformers itself loads it,
    in float32, with the weights of `checkpoint.changed` in place of its own."""
    from transformers.modeling_layers import MtpModel

    head = MtpModel.from_pretrained(model).float().eval()
    if checkpoint.changed:
        changed = {name: _part(checkpoint, name) for name in checkpoint.changed if name in checkpoint.tensors}
        held, _ = heads.convert_head(head, model, replace(checkpoint, tensors={**checkpoint.tensors, **changed}))
        parameters = dict(head.named_parameters())
        for name, weight in held.items():
            tensor = checkpoint.changed.get(weight.name)
            parameters[name].copy_(_torch(graph_tensor(weight) if tensor is None else tensor))
    return head


def is_large(checkpoint: Checkpoint) -> bool:
    """Whether the model is run module by module. Each run of it then reads and converts all weights."""
    limit = LOADED if checkpoint.gguf is None else LOADED_GGUF
    return 4 * sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()) > limit


def _loaded(checkpoint: Checkpoint, auto: Any) -> Any:
    arguments: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if checkpoint.gguf is not None:  # the weights from the file, but not its config, of which a part gets lost
        config = AutoConfig.from_pretrained(checkpoint.path, **arguments)
        arguments |= {"gguf_file": checkpoint.gguf, "config": config}
    model = auto.from_pretrained(checkpoint.path, dtype=torch.float32, attn_implementation="eager", **arguments).eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    if checkpoint.changed:
        weights, parts = _changed_weights(model, checkpoint)
        for name, parameter in model.named_parameters():
            own = str(weights[name].name)
            if own in checkpoint.changed:
                parameter.copy_(_torch(checkpoint.changed[own]))
            elif parts and own not in checkpoint.tensors:  # joined of tensors, perhaps of these
                parameter.copy_(_torch(weights[name]))
    return model


def _streamed(checkpoint: Checkpoint, auto: Any) -> Any:
    """Parameters without bytes, which each module gets before it runs and loses afterwards.

    Memory grows with the largest module that has parameters of its own: mostly the embedding.
    """
    model = construct(checkpoint.path, auto)
    model.set_attn_implementation("eager")
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    weights, _ = _changed_weights(model, checkpoint)
    for name, buffer in model.named_buffers():
        if name in weights:
            buffer.copy_(_torch(weights[name]))
    for prefix, module in model.named_modules():
        names = [name for name, parameter in module._parameters.items() if parameter is not None]
        found = {name: weights[f"{prefix}.{name}" if prefix else name] for name in names}
        if found:
            own = {name: checkpoint.changed.get(str(tensor.name), tensor) for name, tensor in found.items()}
            module.register_forward_pre_hook(partial(_fill, own))
            module.register_forward_hook(partial(_drop, dict(module._parameters)), always_call=True)
    return model


def _changed_weights(model: Any, checkpoint: Checkpoint) -> tuple[Mapping[str, ir.TensorProtocol], set[str]]:
    """For each parameter its tensor, and the changed tensors of the checkpoint that parameters are joined of.

    A parameter that is one of its tensors still has what the checkpoint holds, a joined one the changed parts.
    """
    held, unused = convert(model, checkpoint.tensors)
    parts = (checkpoint.changed.keys() & checkpoint.tensors.keys()) - {weight.name for weight in held.values()}
    parts -= set(unused)
    if parts:  # an exporter may keep each expert by itself where transformers has one parameter of all
        held, _ = convert(model, {**checkpoint.tensors, **{name: _part(checkpoint, name) for name in parts}})
    weights = match_weights(model, checkpoint, held)
    strange = checkpoint.changed.keys() - parts - {str(tensor.name) for tensor in weights.values()}
    strange -= heads.names(checkpoint) if strange else set()
    if strange:
        message = "is stored in another form, but is no parameter of the model"
        raise ProofError(message, where=min(strange))
    return weights, parts


def _part(checkpoint: Checkpoint, name: str) -> DerivedTensor:
    """What stands for a tensor of the checkpoint, as one of its tensors."""
    changed = checkpoint.changed[name]
    stored = next(word for word, dtype in FLOATS.items() if dtype == changed.stored)
    return DerivedTensor(name, checkpoint.tensors[name].file, stored, changed.dims, changed.rows)


def _fill(tensors: Mapping[str, ir.TensorProtocol], module: Any, arguments: tuple[Any, ...]) -> None:
    for name, tensor in tensors.items():
        if isinstance(module, torch.nn.Embedding) and isinstance(tensor, WeightTensor) and arguments:
            value = _rows(tensor, arguments[0])
        else:
            value = _torch(tensor)
        module._parameters[name] = torch.nn.Parameter(value, requires_grad=False)


def _drop(parameters: Mapping[str, Any], module: Any, *_: Any) -> None:
    module._parameters.update(parameters)


def _rows(table: WeightTensor, ids: torch.Tensor) -> torch.Tensor:
    """A table of which only the rows `ids` are there: memory that is not written to takes no room."""
    found = torch.empty(table.dims)
    for row in ids.unique().tolist():
        found[row] = torch.from_numpy(table.rows(slice(row, row + 1))[0].astype(np.float32))
    return found


def _torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    """The tensor as float32. torch widens bfloat16 several times faster than NumPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mapping is read-only, and so is what is done with it here
        if isinstance(tensor, WeightTensor) and tensor.stored == ir.DataType.BFLOAT16:
            raw = np.ascontiguousarray(tensor.rows(slice(None))).view(np.uint16)
            return torch.from_numpy(raw).view(torch.bfloat16).float()
        return torch.from_numpy(np.ascontiguousarray(tensor.numpy())).float()
