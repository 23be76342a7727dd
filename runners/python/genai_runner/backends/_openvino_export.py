# SPDX-License-Identifier: Apache-2.0
"""A decoder as OpenVINO GenAI takes it, written for `export --to openvino`: ids, mask, positions and `beam_idx`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
from openvino import opset13 as ops

from ._openvino_model import BEAM, make_stateful, read_model
from .base import Array, StatePort

NEEDED = {"input_ids": np.int64, "attention_mask": np.int64, BEAM: np.int32}
"""Inputs that the runtime feeds to every decoder, also to one that does without."""


class UnfitError(ValueError):
    """The graph cannot be written so that the runtime computes rightly with it."""


def write_decoder(
    graph: onnx.ModelProto,
    weights: Mapping[str, memoryview],
    states: Sequence[StatePort],
    names: Mapping[str, str],
    folder: Path,
) -> None:
    """Write openvino_model.xml and .bin. `names`: the runtime's names of ports. Raises UnfitError."""
    core = ov.Core()
    model = read_model(core, graph.SerializeToString(), weights).model
    variables = make_stateful(model, states)
    if len(variables) < len(states):
        outside = next(port.past for port in states if port.past not in variables)
        raise UnfitError(f"the cache {outside!r} cannot be a variable of a model")
    for port in (*model.inputs, *model.outputs):
        for name in port.get_names() & names.keys():
            port.get_tensor().set_names({names[name]})
    present = {name for port in model.inputs for name in port.get_names()}
    missing = [name for name in NEEDED if name not in present]
    model.add_parameters([_unread(name) for name in missing])
    model.validate_nodes_and_infer_types()
    _check_reset(core, model)
    write(model, folder / "openvino_model.xml")


def write(model: Any, path: Path) -> None:
    """Write a model, its weights in their own types, as `path` and a .bin beside it."""
    ov.save_model(model, path, compress_to_fp16=False)


def _unread(name: str) -> Any:
    shape = [-1] if name == BEAM else [-1, -1]
    parameter = ops.parameter(shape, NEEDED[name], name=name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _check_reset(core: ov.Core, model: ov.Model) -> None:
    """The runtime resets a model between prompts, which some graphs outlive wrongly: see `OpenVinoGraph._set`."""
    compiled = core.compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    again, fresh = compiled.create_infer_request(), compiled.create_infer_request()
    expected = _logits(fresh, 0, 2)
    _logits(again, 0, 2)
    _logits(again, 2, 1)
    again.reset_state()
    if not np.array_equal(_logits(again, 0, 2), expected):
        raise UnfitError("where attention is not fused, its caches are not empty again after the engine has reset them")


def _logits(request: Any, held: int, count: int) -> Array:
    """Those of `count` tokens after `held`."""
    places = np.arange(held, held + count, dtype=np.int64)[None]
    mask = np.ones((1, held + count), np.int64)
    feeds = {"input_ids": places, "attention_mask": mask, "position_ids": places, BEAM: np.zeros(1, np.int32)}
    for port in request.model_inputs:
        request.set_tensor(port, ov.Tensor(feeds[port.get_any_name()]))
    request.start_async()
    request.wait()
    return np.array(request.get_tensor("logits").data)
