# SPDX-License-Identifier: Apache-2.0
"""Operators of newer sets, and functions of a model, against ONNX's reference evaluator of the operator itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from bundle.builder.lowering.nodes import Array, agrees, draw, left, one, portable
from genai_bundle.builder.lowering import lower
from genai_bundle.builder.lowering import portable as is_portable


def check(model: onnx.ModelProto, feeds: dict[str, Array], within: float = 2e-5) -> onnx.ModelProto:
    given = {name: array for name, array in feeds.items() if not name.startswith("_")}
    return agrees(model, feeds, ReferenceEvaluator(model).run(None, given), within)


BEGINS: list[tuple[str, list[int] | None]] = [
    *((mode, begin) for mode in ("linear", "circular") for begin in (None, [0, 0], [2, 5])),
    ("circular", [6, 7]),  # beyond the end, where only that one goes on
]


@pytest.mark.parametrize(("mode", "begin"), BEGINS)
@pytest.mark.parametrize(("axis", "shape"), [(-2, (2, 3, 8, 4)), (1, (2, 8, 5)), (2, (2, 3, 8))])
def test_scattered_caches(mode: str, axis: int, shape: tuple[int, ...], begin: list[int] | None) -> None:
    place = axis % len(shape)
    update = draw(2, *(3 if index == place else dim for index, dim in enumerate(shape)))
    feeds = {"cache": draw(1, *shape), "new": update} | ({"at": np.array(begin)} if begin else {})
    model = one("TensorScatter", feeds, ["y"], domain="", opset=24, mode=mode, axis=axis)
    assert not is_portable(model)
    check(model, feeds)


MASKS = {
    "none": None,
    "numbers": draw(9, 2, 1, 5, 8),
    "conditions": np.random.default_rng(4).random((5, 8)) > 0.2,
    "short": draw(9, 5, 6),
}


WINDOWS: dict[str, dict[str, int]] = {
    "left": {"left_window_size": 2},
    "right": {"right_window_size": 1},
    "both": {"left_window_size": 0, "right_window_size": 3},
}


@pytest.mark.parametrize(
    ("sizes", "causal", "mask", "past"),
    [
        ("left", 1, "none", 0), ("left", 1, "none", 3), ("left", 0, "numbers", 3), ("left", 1, "conditions", 3),
        ("left", 1, "conditions", 0), ("right", 0, "none", 3), ("right", 1, "numbers", 0), ("right", 0, "short", 3),
        ("both", 0, "none", 0), ("both", 1, "conditions", 3), ("both", 0, "short", 0), ("both", 1, "numbers", 3),
    ],
)  # fmt: skip
def test_windows(sizes: str, causal: int, mask: str, past: int) -> None:
    given = MASKS[mask]
    if given is not None and not past:
        given = given[..., 3:] if mask != "short" else given[..., 2:]
    feeds: dict[str, Array] = {"q": draw(1, 2, 4, 5, 8), "k": draw(2, 2, 2, 5, 8), "v": draw(3, 2, 2, 5, 8)}
    feeds["_mask" if given is None else "mask"] = np.zeros(0) if given is None else given
    outputs = ["y"]
    if past:
        feeds |= {"past_k": draw(4, 2, 2, past, 8), "past_v": draw(5, 2, 2, past, 8)}
        outputs += ["now_k", "now_v"]
    model = one("Attention", feeds, outputs, domain="", opset=25, is_causal=causal, **WINDOWS[sizes])
    assert not is_portable(model)
    check(model, feeds)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_windows_over_flat_heads_with_a_cap(softcap: float) -> None:
    feeds = {"q": draw(1, 2, 5, 32), "k": draw(2, 2, 5, 16), "v": draw(3, 2, 5, 16)}
    model = one(
        "Attention", feeds, ["y"], domain="", opset=25, is_causal=1, left_window_size=2, softcap=softcap,
        q_num_heads=4, kv_num_heads=2,
    )  # fmt: skip
    check(model, feeds)


def test_attention_without_windows_is_restamped() -> None:
    feeds = {"q": draw(1, 2, 4, 5, 8), "k": draw(2, 2, 4, 5, 8), "v": draw(3, 2, 4, 5, 8)}
    model = one("Attention", feeds, ["y"], domain="", opset=25, is_causal=1)
    found = lower(ir.from_proto(model))
    assert (found.left, found.model.opset_imports[""]) == ([], 24)


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
@pytest.mark.parametrize(("tokens", "heads", "past"), [(6, (2, 2), False), (6, (4, 2), True), (1, (4, 2), True)])
def test_linear_attention(rule: str, tokens: int, heads: tuple[int, int], past: bool) -> None:
    queries, kept = heads
    feeds = {"q": draw(1, 2, tokens, queries * 4), "k": draw(2, 2, tokens, kept * 4, scale=0.5)}
    feeds |= {"v": draw(3, 2, tokens, kept * 6), "past" if past else "_past": draw(4, 2, kept, 4, 6)}
    gated, delta = "gated" in rule, "delta" in rule
    feeds["g" if gated else "_g"] = -np.abs(draw(5, 2, tokens, kept * 4))
    feeds["b" if delta else "_b"] = 1 / (1 + np.exp(draw(6, 2, tokens, kept)))
    model = one(
        "LinearAttention", feeds, ["y", "state"], domain="", opset=27, q_num_heads=queries, kv_num_heads=kept,
        update_rule=rule,
    )  # fmt: skip
    check(model, feeds)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("past", [False, True])
def test_convolutions_with_state(activation: str, tokens: int, past: bool) -> None:
    feeds = {"x": draw(1, 2, 6, tokens)}
    weights = {"w": draw(2, 6, 1, 4), "b": draw(3, 6)}
    kept = {"past" if past else "_past": draw(4, 2, 6, 3)}
    model = one("CausalConvWithState", feeds | kept, ["y", "state"], domain="", weights=weights, opset=27,
                activation=activation)  # fmt: skip
    node = model.graph.node[0]
    order = [node.input[index] for index in (0, 2, 3, 1)]
    del node.input[:]
    node.input.extend(order)
    for port in model.graph.input:  # channels are fixed and tokens are not
        port.type.tensor_type.shape.dim[1].dim_value = 6
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "tokens"
    check(model, feeds | kept)


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_gates(alpha: float) -> None:
    feeds = {"a": draw(1, 2, 3, 8), "b": draw(2, 2, 3, 8)}
    check(one("SwiGLU", feeds, ["y"], domain="", opset=28, alpha=alpha), feeds)


FLEX = """
<ir_version: 12, opset_import: ["": 26, "ai.onnx.preview": 1]>
flex (float[b,4,s,8] q, float[b,2,t,8] k, float[b,2,t,8] v) => (float[b,4,s,8] y) {
  y = ai.onnx.preview.FlexAttention <scale = 0.4, score_mod = bent (float[b,4,s,t] scores) => (float[b,4,s,t] out) {
    cap = Constant <value = float {2.0}> ()  part = Div (scores, cap)  bend = Tanh (part)  out = Mul (bend, cap)
  }> (q, k, v)
}
"""


def test_flexible_attention() -> None:
    model = onnx.parser.parse_model(FLEX)
    feeds = {"q": draw(1, 2, 4, 5, 8), "k": draw(2, 2, 2, 7, 8), "v": draw(3, 2, 2, 7, 8)}
    assert not is_portable(model)
    check(model, feeds)


FUNCTIONS = """
<ir_version: 10, opset_import: ["": 21, "own": 1, "com.microsoft": 1]>
outer (float[N,8] x) => (float[N,8] y) { y = own.twice (x) }
<domain: "own", opset_import: ["": 21, "com.microsoft": 1, "own": 1]>
twice (x) => (y) { half = own.bent (x)  y = own.bent (half) }
<domain: "own", opset_import: ["": 21, "com.microsoft": 1]>
bent (x) => (y) { y = com.microsoft.QuickGelu <alpha = 1.0> (x) }
"""


def test_functions_of_a_model() -> None:
    model = onnx.parser.parse_model(FUNCTIONS)
    x = draw(1, 3, 8)
    lowered = agrees(model, {"x": x})
    assert not lowered.functions


LOOP = """
<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
loop (float[N,8] x, int64 times) => (float[N,8] y) <bool yes = {1}> {
  y = Loop (times, yes, x) <body = one (int64 i, bool go, float[N,8] before) => (bool on, float[N,8] after) {
    on = Identity (go)  after = com.microsoft.QuickGelu <alpha = 1.0> (before)
  }>
}
"""


def test_inside_a_loop() -> None:
    agrees(onnx.parser.parse_model(LOOP), {"x": draw(1, 3, 8), "times": np.array(3)})


def test_an_older_set_is_raised() -> None:
    """Of set 11, where axes of Squeeze are an attribute and Softmax flattens."""
    text = """
    <ir_version: 6, opset_import: ["": 11, "com.microsoft": 1]>
    old (float[2,1,8] x) => (float[2,8] y) { z = com.microsoft.QuickGelu <alpha = 1.0> (x)
      s = Squeeze <axes = [1]> (z)  y = Softmax (s) }
    """
    agrees(onnx.parser.parse_model(text), {"x": draw(1, 2, 1, 8)})


@pytest.mark.parametrize(("op", "opset"), [("CumProd", 26), ("BitCast", 26)])
def test_what_is_left(op: str, opset: int) -> None:
    feeds: dict[str, Any] = {"x": draw(1, 2, 8)} | ({"axis": np.array(0)} if op == "CumProd" else {})
    attributes = {"to": onnx.TensorProto.INT32} if op == "BitCast" else {}
    assert left(one(op, feeds, ["y"], domain="", opset=opset, **attributes)) == f"{op}: it is of operator set {opset}"


def test_a_portable_graph_is_seen_as_such() -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 23]> g (float[N] x) => (float[N] y)
        { y = Neg (x) }""")
    assert is_portable(model)
    assert portable(onnx.parser.parse_model(FUNCTIONS)).opset_import[0].version == 23
