# SPDX-License-Identifier: Apache-2.0
"""One file per producer of graphs. Each turns a checkpoint into an `Export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Export:
    """A portable decoder graph.

    `model` is an `onnx_ir.Model`, standard operators only, whose initializers read their bytes from the checkpoint when
    asked. Ports: input_ids i64[batch,sequence], attention_mask i64[batch,total], position_ids i64[batch,sequence],
    num_logits i64[] (the last n positions; 0 or more than there are: all), past_key_values.N.key|value
    [batch,heads,past,head_size] -> logits [batch,num_logits,vocabulary], present.N.key|value
    [batch,heads,total,head_size].
    """

    model: Any
    exporter: str
    version: str
