# SPDX-License-Identifier: Apache-2.0
"""Small random decoders as other exporters write them: one layer of attention, a growing cache, two rows and more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

WORDS = 40
WIDTH = 8
HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'


def weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def model(text: str, tensors: Mapping[str, np.ndarray[Any, Any]], header: str = HEADER) -> onnx.ModelProto:
    found = onnx.parser.parse_model(header + text)
    found.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in tensors.items())
    onnx.checker.check_model(found)
    return found


CONSTANTS = "<int64[1] head = {1}, float one = {1.0}, float low = {-10000.0}, int64[2] outer = {1, 2}>"

ATTENTION = """
  k = Unsqueeze (x, head)   w = MatMul (x, turn)   v = Unsqueeze (w, head)
  present_k = Concat <axis = 2> (past_k, k)
  present_v = Concat <axis = 2> (past_v, v)
  across = Transpose <perm = [0, 1, 3, 2]> (present_k)
  scores = MatMul (k, across)
  seen = Cast <to = 1> (attention_mask)   hidden = Sub (one, seen)   far = Mul (hidden, low)
  bias = Unsqueeze (far, outer)   masked = Add (scores, bias)
  shares = Softmax <axis = -1> (masked)   mixed = MatMul (shares, present_v)   flat = Squeeze (mixed, head)
  y = Add (x, flat)
"""
"""From x [B,S,W] to y. Later tokens are seen by earlier ones; only the last one's logits count."""


def attention(past: tuple[str, str], present: tuple[str, str]) -> str:
    text = ATTENTION
    for short, name in zip(("past_k", "past_v", "present_k", "present_v"), (*past, *present), strict=True):
        text = text.replace(short, f'"{name}"')
    return text


def cache_ports(past: tuple[str, str], present: tuple[str, str], size: str = str(WIDTH)) -> tuple[str, str]:
    inputs = ", ".join(f'float[batch,1,past,{size}] "{name}"' for name in past)
    return inputs, ", ".join(f'float[batch,1,total,{size}] "{name}"' for name in present)


PAST = ("past_key_values.0.key", "past_key_values.0.value")
PRESENT = ("present.0.key", "present.0.value")


def decoder(
    past: tuple[str, str] = PAST, present: tuple[str, str] = PRESENT, *, ids: str = "int64", size: str = str(WIDTH)
) -> onnx.ModelProto:
    """input_ids, attention_mask, position_ids and a cache to logits."""
    before, after = cache_ports(past, present, size)
    text = f"""
    decoder ({ids}[batch,sequence] input_ids, {ids}[batch,total] attention_mask, {ids}[batch,sequence] position_ids,
             {before}) => (float[batch,sequence,{WORDS}] logits, {after})
    {CONSTANTS} {{
      words = Gather (table, input_ids)   at = Gather (places, position_ids)   x = Add (words, at)
      {attention(past, present)}
      logits = MatMul (y, head_weight)
    }}"""
    shapes = {"table": (WORDS, WIDTH), "places": (64, WIDTH), "turn": (WIDTH, WIDTH), "head_weight": (WIDTH, WORDS)}
    return model(text, weights(5, **shapes))


def parts() -> dict[str, onnx.ModelProto]:
    """The same model in three graphs: embeddings, the middle, the output head."""
    before, after = cache_ports(PAST, PRESENT)
    shapes = {"table": (WORDS, WIDTH), "places": (64, WIDTH), "turn": (WIDTH, WIDTH), "head_weight": (WIDTH, WORDS)}
    tensors = weights(5, **shapes)
    embed = f"""embed (int64[batch,sequence] input_ids) => (float[batch,sequence,{WIDTH}] inputs_embeds)
    {{ inputs_embeds = Gather (table, input_ids) }}"""
    middle = f"""
    middle (float[batch,sequence,{WIDTH}] inputs_embeds, int64[batch,total] attention_mask,
            int64[batch,sequence] position_ids, {before}) => (float[batch,sequence,{WIDTH}] hidden_states, {after})
    {CONSTANTS} {{
      at = Gather (places, position_ids)   x = Add (inputs_embeds, at)
      {attention(PAST, PRESENT)}
      hidden_states = Identity (y)
    }}"""
    head = f"""head (float[batch,sequence,{WIDTH}] hidden_states) => (float[batch,sequence,{WORDS}] logits)
    {{ logits = MatMul (hidden_states, head_weight) }}"""
    return {
        "embeddings": model(embed, {"table": tensors["table"]}),
        "middle": model(middle, {name: tensors[name] for name in ("places", "turn")}),
        "lm_head": model(head, {"head_weight": tensors["head_weight"]}),
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
