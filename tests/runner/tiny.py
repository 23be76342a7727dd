# SPDX-License-Identifier: Apache-2.0
"""Bundles for tests, made of graphs written as text: what they compute can be checked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from genai_bundle.writer import write_bundle

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'

# Logits put all weight on the next id of a cycle: after token t comes t+1 modulo 8; they also depend on the number of
# tokens seen (past and present), so that a broken cache shows.
COUNTER = """
decoder (int64[batch, seq] ids, int64[batch, total] mask, float[batch, 1, past, 1] p) =>
        (float[batch, seq, 8] logits, float[batch, 1, total2, 1] q)
{
    axis = Constant <value = int64[1] {1}> ()
    last = Constant <value = int64[1] {3}> ()
    minus = Constant <value = int64[1] {-1}> ()
    eight = Constant <value = int64 {8}> ()
    one = Constant <value = int64 {1}> ()
    ids8 = Constant <value = int64[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
    cast = Cast <to = 1> (ids)
    three = Unsqueeze (cast, axis)
    new = Unsqueeze (three, last)
    q = Concat <axis = 2> (p, new)
    counts = Cast <to = 1> (mask)
    sum = ReduceSum <keepdims = 1> (counts)
    tenth = Constant <value = float {0.0625}> ()
    small = Mul (sum, tenth)
    next = Add (ids, one)
    wrapped = Mod (next, eight)
    column = Unsqueeze (wrapped, minus)
    same = Equal (column, ids8)
    hot = Cast <to = 1> (same)
    held = ReduceSum <keepdims = 0> (q)
    hundredth = Constant <value = float {0.0009765625}> ()
    bias = Mul (held, hundredth)
    scaled = Mul (hot, small)
    logits = Add (scaled, bias)
}
"""


def model(text: str, header: str = HEADER) -> bytes:
    """A serialised model of the one graph written in `text`."""
    return onnx.parser.parse_model(header + text).SerializeToString()


def bundle(target: Path, graphs: dict[str, str | bytes], manifest: dict[str, Any], **members: bytes) -> Path:
    """Write a bundle at `target` whose graph `name` is the member `name.onnx`, and return its path."""
    files: dict[str, Any] = {
        f"{name}.onnx": text if isinstance(text, bytes) else model(text) for name, text in graphs.items()
    }
    entries = {name: {"file": f"{name}.onnx"} for name in graphs}
    base = {"format": "1.0", "name": "tiny", "graphs": entries, "inputs": {}, "outputs": {}, "steps": []}
    write_bundle(target, {**base, **manifest}, {**files, **members})
    return target


def counter(target: Path, **changes: Any) -> Path:
    """A language model over 8 ids that counts upwards, with an appended cache."""
    manifest = {
        "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}},
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}},
        "state": {"kv": {"graph": "decoder", "ports": {"p": "q"}, "axis": 2, "tokens": "ids", "capacity": 64}},
        "steps": [
            {
                "generate": {
                    "carry": {"ids": "token"},
                    "do": [{"run": "decoder", "in": {"ids": "ids", "mask": "kv.mask"}, "out": {"logits": "logits"}}],
                    "logits": "logits",
                    "emit": {"tokens": "token"},
                }
            }
        ],
    }
    return bundle(target, {"decoder": COUNTER}, {**manifest, **changes})
