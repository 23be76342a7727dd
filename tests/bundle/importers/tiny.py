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


def encoder(out: str = "last_hidden_state", *, types: bool = False) -> onnx.ModelProto:
    """input_ids and attention_mask to a vector for each token, which knows of the others."""
    more = ", int64[batch,sequence] token_type_ids" if types else ""
    kinds = "kind = Gather (kinds, token_type_ids)" if types else "kind = Identity (words)"
    text = f"""
    encoder (int64[batch,sequence] input_ids, int64[batch,sequence] attention_mask{more})
      => (float[batch,sequence,{WIDTH}] {out})
    <int64[1] tokens = {{1}}, int64[1] last = {{-1}}> {{
      words = Gather (table, input_ids)   {kinds}   both = Add (words, kind)
      seen = Cast <to = 1> (attention_mask)   wide = Unsqueeze (seen, last)   part = Mul (both, wide)
      mean = ReduceMean <axes = [1]> (part)   moved = Add (both, mean)   {out} = Tanh (moved)
    }}"""
    tensors = weights(7, table=(WORDS, WIDTH)) | (weights(8, kinds=(2, WIDTH)) if types else {})
    return model(text, tensors)


def merged_decoder() -> onnx.ModelProto:
    """What `optimum-cli` merges: a branch that makes the cross cache and one that gives nothing in its place."""
    past = ("past_key_values.0.decoder.key", "past_key_values.0.decoder.value")
    present = ("present.0.decoder.key", "present.0.decoder.value")
    cross_past = ("past_key_values.0.encoder.key", "past_key_values.0.encoder.value")
    cross = ("present.0.encoder.key", "present.0.encoder.value")
    before, after = cache_ports(past, present)
    crossed = ", ".join(f'float[batch,1,source,{WIDTH}] "{name}"' for name in cross_past)
    made = ", ".join(f'float[batch,1,source_out,{WIDTH}] "{name}"' for name in cross)

    def branch(name: str, keys: str, values: str, start: str, gives: tuple[str, str]) -> str:
        results = [f"float[batch,n,words] {name}_logits"]
        results += [f"float[batch,1,m{n},{WIDTH}] {one}" for n, one in enumerate((f"{name}_k", f"{name}_v", *gives))]
        return (
            f"{name} () => ({', '.join(results)})"
            f" {{ {start}"
            f" {name}_x = Gather (table, input_ids)  {name}_n = Unsqueeze ({name}_x, head)"
            f' {name}_k = Concat <axis = 2> ("{past[0]}", {name}_n)  {name}_m = MatMul ({name}_n, turn)'
            f' {name}_v = Concat <axis = 2> ("{past[1]}", {name}_m)'
            f" {name}_t = Transpose <perm = [0, 1, 3, 2]> ({name}_k)  {name}_s = MatMul ({name}_n, {name}_t)"
            f" {name}_p = Softmax <axis = -1> ({name}_s)  {name}_y = MatMul ({name}_p, {name}_v)"
            f" {name}_ct = Transpose <perm = [0, 1, 3, 2]> ({keys})  {name}_cs = MatMul ({name}_y, {name}_ct)"
            f" {name}_mask = Cast <to = 1> (encoder_attention_mask)  {name}_hid = Sub (one, {name}_mask)"
            f" {name}_far = Mul ({name}_hid, low)  {name}_bias = Unsqueeze ({name}_far, outer)"
            f" {name}_cm = Add ({name}_cs, {name}_bias)  {name}_cp = Softmax <axis = -1> ({name}_cm)"
            f" {name}_cy = MatMul ({name}_cp, {values})  {name}_z = Add ({name}_n, {name}_cy)"
            f" {name}_flat = Squeeze ({name}_z, head)  {name}_logits = MatMul ({name}_flat, head_weight) }}"
        )

    first = branch(
        "first", "first_ck", "first_cv",
        "first_ck = Unsqueeze (encoder_hidden_states, head)  first_cv = MatMul (first_ck, cross_turn)",
        ("first_ck", "first_cv"),
    )  # fmt: skip
    later = branch(
        "later", f'"{cross_past[0]}"', f'"{cross_past[1]}"',
        "later_none = ConstantOfShape (nothing)  later_gone = ConstantOfShape (nothing)", ("later_none", "later_gone"),
    )  # fmt: skip
    names = ", ".join(f'"{name}"' for name in ("logits", *present, *cross))
    text = f"""
    merged (int64[batch,source] encoder_attention_mask, int64[batch,sequence] input_ids,
            float[batch,source,{WIDTH}] encoder_hidden_states, {before}, {crossed}, bool[1] use_cache_branch)
      => (float[batch,sequence,{WORDS}] logits, {after}, {made})
    <int64[1] head = {{1}}, float one = {{1.0}}, float low = {{-10000.0}}, int64[2] outer = {{1, 2}},
     int64[4] nothing = {{1, 1, 0, {WIDTH}}}> {{
      {names} = If (use_cache_branch) <then_branch = {later}, else_branch = {first}>
    }}"""
    shapes = {"table": (WORDS, WIDTH), "turn": (WIDTH, WIDTH), "head_weight": (WIDTH, WORDS)}
    return model(text, weights(6, **shapes, cross_turn=(WIDTH, WIDTH)))


def scatter_weights(graph: onnx.ModelProto, path: Path, files: int) -> None:
    """Save a model whose weights lie in several files, as large exports do: `NAME.onnx_data`, `NAME.onnx_data_1`."""
    found = onnx.ModelProto.FromString(graph.SerializeToString())
    ends = dict.fromkeys(range(files), 0)
    for number, tensor in enumerate(found.graph.initializer):
        index = number % files
        name = f"{path.name}_data" + (f"_{index}" if index else "")
        data = onnx.numpy_helper.to_array(tensor).tobytes()
        with (path.parent / name).open("ab") as file:
            file.write(data)
        for field in ("raw_data", "int64_data", "float_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", ends[index]), ("length", len(data))):
            tensor.external_data.add(key=key, value=str(value))
        ends[index] += len(data)
    path.write_bytes(found.SerializeToString())
