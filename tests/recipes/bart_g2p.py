# SPDX-License-Identifier: Apache-2.0
"""Makes the files of bart-g2p.yaml: a BART with one layer and one head on each side, from its safetensors file.

The architecture is Hugging Face's BartForConditionalGeneration: learned positions from 2 on, a norm after each
residual, tied embeddings. The topology is ONNX text; its initializers are the checkpoint's tensors, transposed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from genai_bundle.builder.safetensors import read_safetensors


def linear(out: str, x: str, name: str) -> str:
    return f'{out}_product = MatMul ({x}, "{name}.weight")  {out} = Add ({out}_product, "{name}.bias")\n'


def norm(out: str, x: str, name: str) -> str:
    return f'{out} = LayerNormalization ({x}, "{name}.weight", "{name}.bias")\n'


def heads(out: str, x: str, name: str) -> str:
    """A projection as float[1,1,S,128]: one head."""
    return linear(f"{out}_flat", x, name) + f"{out} = Unsqueeze ({out}_flat, one)\n"


def attended(out: str, x: str, mixed: str, attention: str) -> str:
    """The end of an attention block: one head back to rank 3, projection, residual, norm."""
    start = f"{out}_rows = Squeeze ({mixed}, one)\n" + linear(f"{out}_turned", f"{out}_rows", f"{attention}.out_proj")
    return start + f"{out}_sum = Add ({x}, {out}_turned)\n" + norm(out, f"{out}_sum", f"{attention}_layer_norm")


def perceptron(out: str, x: str, layer: str) -> str:
    start = linear(f"{out}_wide", x, f"{layer}.fc1") + f"{out}_bent = Gelu ({out}_wide)\n"
    end = linear(f"{out}_narrow", f"{out}_bent", f"{layer}.fc2") + f"{out}_sum = Add ({x}, {out}_narrow)\n"
    return start + end + norm(out, f"{out}_sum", f"{layer}.final_layer_norm")


def embedded(out: str, side: str, positions: str) -> str:
    return (
        f"{out}_words = Gather (shared, input_ids)  {out}_moved = Add ({positions}, two)\n"
        f'{out}_places = Gather ("{side}.embed_positions.weight", {out}_moved)\n'
        f"{out}_sum = Add ({out}_words, {out}_places)\n"
    ) + norm(out, f"{out}_sum", f"{side}.layernorm_embedding")


def encoder() -> str:
    layer = "encoder.layers.0"
    return (
        "encoder (int64[1,S] input_ids) => (float[1,S,128] hidden)\n"
        "<int64[1] one = {1}, int64 two = {2}, int64 zero = {0}, int64 step = {1}> {\n"
        "size = Shape <start = 1> (input_ids)  length = Squeeze (size)  positions = Range (zero, length, step)\n"
        + embedded("x", "encoder", "positions")
        + "".join(heads(part, "x", f"{layer}.self_attn.{part}_proj") for part in "qkv")
        + "mixed = Attention (q, k, v)\n"
        + attended("seen", "x", "mixed", f"{layer}.self_attn")
        + perceptron("hidden", "seen", layer)
        + "}"
    )


def decoder() -> str:
    """The self cache is joined by `Attention` itself; the cross cache is computed where the past one is empty."""
    layer = "decoder.layers.0"
    parts = {"key": "k_proj", "value": "v_proj"}
    filled = "".join(
        heads(f"new_{part}", "encoder_hidden_states", f"{layer}.encoder_attn.{name}") for part, name in parts.items()
    )
    caches = ", ".join(
        f'float[1,1,{dim},128] "past.0.{kind}.{part}"'
        for kind, dim in (("self", "P"), ("cross", "C"))
        for part in parts
    )
    grown = ", ".join(
        f'float[1,1,{dim},128] "present.0.{kind}.{part}"'
        for kind, dim in (("self", "T"), ("cross", "E"))
        for part in parts
    )
    return (
        f"decoder (int64[1,S] input_ids, int64[1,S] position_ids, float[1,E,128] encoder_hidden_states, {caches})\n"
        f"=> (float[1,S,63] logits, {grown})\n"
        "<int64[1] one = {1}, int64 two = {2}, int64[1] zero = {0}> {\n"
        + embedded("x", "decoder", "position_ids")
        + "".join(heads(part, "x", f"{layer}.self_attn.{part}_proj") for part in "qkv")
        + 'mixed, "present.0.self.key", "present.0.self.value" = Attention <is_causal = 1>\n'
        '(q, k, v, , "past.0.self.key", "past.0.self.value")\n'
        + attended("said", "x", "mixed", f"{layer}.self_attn")
        + 'held = Shape <start = 2, end = 3> ("past.0.cross.key")  empty = Equal (held, zero)\n'
        '"present.0.cross.key", "present.0.cross.value" = If (empty) <then_branch = fill ()\n'
        f"=> (float[1,1,E,128] new_key, float[1,1,E,128] new_value) {{ {filled} }}, else_branch = keep ()\n"
        "=> (float[1,1,E,128] old_key, float[1,1,E,128] old_value) {\n"
        'old_key = Identity ("past.0.cross.key")  old_value = Identity ("past.0.cross.value") }>\n'
        + heads("ask", "said", f"{layer}.encoder_attn.q_proj")
        + 'heard = Attention (ask, "present.0.cross.key", "present.0.cross.value")\n'
        + attended("both", "said", "heard", f"{layer}.encoder_attn")
        + perceptron("top", "both", layer)
        + "turned = Transpose (shared)  scores = MatMul (top, turned)  logits = Add (scores, final_logits_bias)\n}"
    )


def tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """One token a letter, between <s> and </s>. The letters' ids are their places in the config's `grapheme_chars`."""
    letters = {letter: place for place, letter in enumerate(config["grapheme_chars"]) if letter != "_"}
    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    plain = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    end = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    ends = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>")]
    return {
        "version": "1.0",
        "added_tokens": [{"id": place, "content": name, **plain} for name, place in special.items()],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [ends[0], {"Sequence": {"id": "A", "type_id": 0}}, ends[1]],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, "</s>": end},
        },
        "model": {"type": "WordLevel", "vocab": special | letters, "unk_token": "<unk>"},
    }  # fmt: skip


def make(source: Path, target: Path) -> None:
    """Write encoder.onnx, decoder.onnx and tokenizer.json into `target` from the folder `source`."""
    config = json.loads((source / "us_bart_config.json").read_text(encoding="utf-8"))
    (target / "tokenizer.json").write_text(json.dumps(tokenizer(config)), encoding="utf-8")
    arrays: dict[str, NDArray[Any]] = {}
    for name, stored in read_safetensors(source / "us_bart.safetensors").items():
        array = np.frombuffer(stored.data, "<f4").reshape(stored.shape)
        short = name.removeprefix("model.").replace("shared.weight", "shared")
        arrays[short] = array.T if short.endswith(("proj.weight", "fc1.weight", "fc2.weight")) else array
    for name, text in (("encoder", encoder()), ("decoder", decoder())):
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {text}')
        for weight, array in arrays.items():
            if weight in text:
                model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), weight))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, target / f"{name}.onnx")
