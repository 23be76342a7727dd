# SPDX-License-Identifier: Apache-2.0
"""A causal language model through mobius, which writes graphs by hand for each architecture instead of tracing them.

Its graphs are small and made in a second, and its recurrent ones take a whole prompt at once. They are also, for some
families, silently wrong (windows, soft caps): like those of any exporter, they count once they are proven.
"""

from __future__ import annotations

import dataclasses
import re
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from genai_bundle.builder import tidy
from genai_bundle.builder.checkpoint import Checkpoint, text_config
from genai_bundle.builder.exporters import Export, states
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.exporters.replay import rearranged
from genai_bundle.builder.lazy import Weight, graph_tensor
from genai_bundle.errors import SourceError

NAME = "mobius"

STANDARD = "onnx-standard"
"""Its target without operators of anybody's own."""

OPSET = 23
"""What these graphs need of the opset 24 that they state: nothing new."""

NEWER = frozenset({"TensorScatter", "Swish"})
"""Operators that came with opset 24."""

THROUGH = frozenset({"Mul", "Div", "Tanh", "Cast", "Add"})
"""What may stand between the output head and the logits: scales, caps, a bias."""

_CACHE = re.compile(r"(past_key_values|past_states|present)\.(\d+)\.(key|value|conv_state|ssm_state|recurrent_state)")

_FIELDS = {"conv_state": "conv", "ssm_state": "recurrent", "recurrent_state": "recurrent"}
"""Our names for a layer's states."""


def export_decoder(checkpoint: Checkpoint) -> Export:
    """The decoder graph of a checkpoint, with its weights referring to the checkpoint's tensors.

    Raises:
        SourceError: mobius is not installed or does not know the model, or the checkpoint lacks a tensor.
    """
    module, model = build_graph(checkpoint)
    strange = [value.name for value in (*model.graph.inputs, *model.graph.outputs) if not _known(str(value.name))]
    if strange:
        raise SourceError(f"its graph has the port '{strange[0]}', a state of a kind not built yet", where=NAME)
    attach_weights(module, model, checkpoint)
    arrange(model)
    return Export({"decoder": model}, states(model), NAME, version("mobius-onnx"))


def build_graph(checkpoint: Checkpoint) -> tuple[Any, ir.Model]:
    """mobius' module and its graph, whose initializers have names and shapes but no values yet."""
    if find_spec("mobius") is None:
        raise SourceError("it is not installed", where=NAME, hint='Install it with: pip install "genai-bundle[mobius]"')
    with quiet():
        import mobius
        import transformers
        from mobius._config_resolver import _config_from_hf, _default_task_for_model

        whole = transformers.AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
        kind = text_config(checkpoint.config).get("model_type", whole.model_type)
        try:
            made = mobius.registry.get(kind)
            config = _config_from_hf(whole.get_text_config(), parent_config=whole, module_class=made)
            module = made(dataclasses.replace(config, dtype=ir.DataType.FLOAT))
            package = mobius.build_from_module(
                module, module.config if hasattr(module, "config") else config,
                _default_task_for_model(kind), execution_provider=STANDARD,
            )  # fmt: skip
        except Exception as error:  # an unknown architecture, or whatever its code raises on a config it did not expect
            reason = str(error).strip().strip("\"'").split("\n")[0]
            raise SourceError(f"it cannot make this model: {reason}", where="config.json") from error
    if list(package) != ["model"]:
        raise SourceError(f"it makes several graphs: {', '.join(package)}", where="config.json")
    return module, package["model"]


def attach_weights(module: Any, model: ir.Model, checkpoint: Checkpoint) -> None:
    """Give the initializers the checkpoint's tensors, renamed and turned as mobius would while loading them."""
    arrange_weights = getattr(module, "preprocess_weights", lambda weights: weights)
    with quiet():
        held = rearranged(checkpoint.tensors, arrange_weights)
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None:
            continue
        if name not in held:
            raise SourceError(f"its graph needs the tensor '{name}', which the checkpoint lacks", where=NAME)
        _attach(graph, value, held[name])


def _attach(graph: ir.Graph, value: ir.Value, weight: Weight) -> None:
    if value.shape is None or tuple(value.shape) != weight.shape:
        raise SourceError(
            f"has the shape {list(weight.shape)}, but mobius expects {value.shape} of '{value.name}'",
            where=weight.where,
        )
    tensor = graph_tensor(weight)
    old, new = str(value.name), str(tensor.name)
    if new != old and new in graph.initializers:  # tied: one tensor under both names
        ir.convenience.replace_all_uses_with(value, graph.initializers[new])
        del graph.initializers[old]
        return
    del graph.initializers[old]
    value.const_value, value.name = tensor, new
    graph.register_initializer(value)


def arrange(model: ir.Model) -> None:
    """Our ports, axes and names, logits of the last positions only, and the opset that the graph needs."""
    graph = model.graph
    common.InlinePass()(model)
    _cut(graph)
    for node in graph:
        scopes = node.metadata_props.get("pkg.onnxscript.name_scopes")
        tidy.scope(node, scopes)
    names = {"sequence_len": "sequence", "past_sequence_len": "past", "past_sequence_len + sequence_len": "total"}
    tidy.name_axes(model, {"batch": "batch", **names})
    for value in (*graph.inputs, *graph.outputs):
        if value.name == "attention_mask":
            value.shape = ir.Shape(["batch", "total"])
        elif match := _CACHE.fullmatch(str(value.name)):
            side = "present" if match[1] == "present" else "past_key_values"
            value.name = f"{side}.{match[2]}.{_FIELDS.get(match[3], match[3])}"
    used = {node.op_type for node in model.graph.all_nodes()}
    if not used & NEWER:
        model.opset_imports[""] = OPSET
    tidy.finish(model)


def _cut(graph: ir.Graph) -> None:
    """Multiply only the last positions with the output head."""
    value: ir.Value | None = next(value for value in graph.outputs if value.name == "logits")
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in THROUGH:
        value = next((one for one in node.inputs if one is not None and one.producer() is not None), None)
        node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.inputs[0] is None:
        raise SourceError("its graph has no output head that this exporter knows", where=NAME)
    tidy.keep_last(graph, node, "num_logits")


def _known(port: str) -> bool:
    return port in ("input_ids", "attention_mask", "position_ids", "logits") or _CACHE.fullmatch(port) is not None
