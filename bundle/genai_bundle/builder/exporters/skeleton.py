# SPDX-License-Identifier: Apache-2.0
"""A transformers model whose parameters have shapes but no bytes, and the sample that an exporter traces it with.

The trace of a decoder does not depend on its weights. Without them it costs the same for every size of model, and the
exporter's optimiser cannot fold, merge or transpose a weight into a second copy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from genai_bundle.errors import SourceError


def construct(path: Path, auto: Any = AutoModelForCausalLM) -> Any:
    """The model of the folder `path`: float32, parameters on the meta device, real buffers (rotary frequencies).

    Only the folder's config is read. `auto` is the class of transformers that chooses the model's by it.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        model = _construct(config, auto)
    except (ValueError, KeyError, OSError, ImportError) as error:
        message = str(error).strip().split("\n")[0]
        raise SourceError(f"transformers cannot make this model: {message}", where="config.json") from error
    model.eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")  # gathers weights by index; the others unroll the experts
    model.tie_weights()
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.forward = MethodType(_dynamic_rotation, module)
    return model


def _dynamic_rotation(module: Any, x: Any, position_ids: Any) -> Any:
    """The frequencies as a function of the text's length. transformers branches on it, which no graph can follow."""
    make = ROPE_INIT_FUNCTIONS[module.rope_type]
    frequencies, module.attention_scaling = make(module.config, x.device, seq_len=torch.max(position_ids) + 1)
    module.inv_freq.copy_(frequencies)
    return inspect.unwrap(type(module).forward)(module, x, position_ids)


def _construct(config: Any, auto: Any) -> Any:
    """Attention as one operator where the model has that form (ONNX has an operator for it), else written out."""
    arguments = {"trust_remote_code": False, "dtype": torch.float32}
    with meta_parameters():
        try:
            return auto.from_config(config, attn_implementation="sdpa", **arguments)
        except ValueError as error:
            if "attention implementation" not in str(error):
                raise
            return auto.from_config(config, attn_implementation="eager", **arguments)


def parameter_names(model: Any) -> dict[str, list[str]]:
    """Every parameter's name, with all names of the same parameter (itself included), in the model's order."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {name: names for names in groups.values() for name in names}


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Inside, each parameter moves to the meta device as it is registered, so initialising the model costs nothing.

    Buffers stay real: rotary frequencies are computed in the constructor and are in no checkpoint.
    """
    register = torch.nn.Module.register_parameter

    def register_meta(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None:
            parameter = torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = register_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def fake_parameters(model: Any, untied: Callable[[list[str]], bool]) -> None:
    """Meta parameters become fake ones "on the CPU": the tracer refuses to mix them with CPU inputs otherwise.

    Args:
        model: as `construct` made it.
        untied: told the names that share one parameter, whether the checkpoint holds different weights for them.
            transformers ignores the config's tie in that case, and so must we.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    split = {name for names in parameter_names(model).values() if len(names) > 1 and untied(names) for name in names}
    made: dict[int, Any] = {}
    for prefix, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            with mode:
                fresh = torch.nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=False)
            full = f"{prefix}.{name}" if prefix else name
            module._parameters[name] = fresh if full in split else made.setdefault(id(parameter), fresh)


def sample(model: Any, batch: int, sequence: int, past: int) -> dict[str, Any]:
    """Arguments of one cached forward: `sequence` tokens after `past` held ones, the first row padded on the left.

    An all-ones mask would be dropped from the graph, a past of one token frozen into it: hence the padded row and
    `past` >= 2. A model without a cache of keys takes neither positions nor a mask: its states hold no places.
    """
    parameters = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in parameters else "past_key_values"
    ids = torch.zeros(batch, past, dtype=torch.long)
    cache = _zeros_like(model(input_ids=ids, use_cache=True, logits_to_keep=1)[name])
    arguments = {"input_ids": torch.zeros(batch, sequence, dtype=torch.long)}
    if any(hasattr(layer, "keys") for layer in cache.layers):
        mask = torch.ones(batch, past + sequence, dtype=torch.long)
        mask[0, 0] = 0
        arguments["attention_mask"] = mask
        arguments["position_ids"] = torch.arange(past, past + sequence)[None].repeat(batch, 1)
    return {**arguments, name: cache, "logits_to_keep": torch.arange(sequence), "use_cache": True}


def dynamic_axes(first: Any, second: Any) -> Any:
    """What `torch.export` takes as dynamic shapes: the axes that differ between two samples. All others are static."""
    if isinstance(first, torch.Tensor):
        pairs = zip(first.shape, second.shape, strict=True)
        return {axis: torch.export.Dim.AUTO for axis, (a, b) in enumerate(pairs) if a != b}
    if isinstance(first, Mapping):
        return {key: dynamic_axes(value, second[key]) for key, value in first.items() if key != "use_cache"}
    # A cache: the exporter registers it as a flat list of its tensors, in the order in which attributes were set.
    return [dynamic_axes(a, b) for a, b in zip(_leaves(first), _leaves(second), strict=True)]


def _leaves(value: Any) -> list[Any]:
    """The tensors inside a cache object."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return _leaves(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, type) else []


def _zeros_like(value: Any) -> Any:
    """The cache with real zeros in place of fake tensors."""
    for layer in value.layers:
        for held in (vars(layer), *(inner for inner in vars(layer).values() if isinstance(inner, dict))):
            for name, tensor in held.items():
                if isinstance(tensor, torch.Tensor):
                    held[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return value
