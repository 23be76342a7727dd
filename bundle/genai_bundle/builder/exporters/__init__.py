# SPDX-License-Identifier: Apache-2.0
"""One file per producer of graphs. Each turns a checkpoint into an `Export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genai_bundle.errors import ProofError


class HeadError(ProofError):
    """A checkpoint's head for multi-token prediction cannot be made, or is not right. The model may be, without it."""


@dataclass(frozen=True)
class Export:
    """Portable graphs of one checkpoint.

    `graphs` are `onnx_ir.Model`s by the manifest's graph names, standard operators only, whose initializers read their
    bytes from the checkpoint when asked, as float32. `state` is the manifest's section, without capacities.

    A causal decoder has the ports input_ids i64[batch,sequence], attention_mask i64[batch,total], position_ids
    i64[batch,sequence], num_logits i64[] (the last n positions; 0 or more than there are: all),
    past_key_values.N.key|value [batch,heads,past,head_size] -> logits [batch,num_logits,vocabulary],
    present.N.key|value [batch,heads,total,head_size].

    Where the checkpoint has a head that predicts further tokens, the decoder gives hidden [batch,sequence,width] too,
    and `head` has the decoder's ports and the input hidden_before: what either gave at the position before each id.
    """

    graphs: Mapping[str, Any]
    state: Mapping[str, Mapping[str, Any]]
    exporter: str
    version: str
    dropped: Sequence[str] = ()
    """Tensors of the checkpoint that no graph uses, where the exporter knows."""


KV_STATE: Mapping[str, Any] = {
    "graph": "decoder",
    "ports": {"past_key_values.{n}.{h}": "present.{n}.{h}"},
    "axis": 2,
    "update": "append",
    "tokens": "input_ids",
}
"""The state entry of a decoder's growing cache."""


def states(model: Any) -> Mapping[str, Mapping[str, Any]]:
    """The manifest's states for the cache ports of a decoder: keys and values grow, other states are replaced."""
    fields = {
        str(value.name).split(".", 2)[2]
        for value in model.graph.inputs
        if str(value.name).startswith("past_key_values.")
    }
    if fields == {"key", "value"}:
        return {"kv": KV_STATE}
    grown, replaced = (
        {f"past_key_values.{{n}}.{field}": f"present.{{n}}.{field}" for field in sorted(own)}
        for own in (fields & {"key", "value"}, fields - {"key", "value"})
    )
    recurrent = {"graph": "decoder", "ports": replaced, "update": "replace", "tokens": "input_ids"}
    return ({"kv": {**KV_STATE, "ports": grown}} if grown else {}) | {"recurrent": recurrent}
