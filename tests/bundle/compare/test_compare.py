# SPDX-License-Identifier: Apache-2.0
"""What is said to differ is what was changed, as NumPy and the eye see it; and nothing else is."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bundle.weighty import ADD, STEPS, weighty
from cli.samples import talker, tokenizer
from genai_bundle.bundle import open_bundle
from genai_bundle.compare import Difference, compare
from genai_bundle.compare.documents import changes
from genai_bundle.writer import write_bundle, write_folder
from runner.tiny import HEADER


def difference(first: Path, second: Path) -> Difference:
    with open_bundle(first) as one, open_bundle(second) as other:
        return compare(one, other)


def test_a_bundle_is_equal_to_itself_in_both_forms(sample: Path, tmp_path: Path) -> None:
    with open_bundle(sample) as bundle:
        manifest = json.loads(bundle.manifest.raw)
        del manifest["files"]
        write_folder(tmp_path / "folder", manifest, {path: bundle.read(path) for path in bundle.manifest.files})
    assert difference(sample, tmp_path / "folder") == Difference()
    assert difference(sample, tmp_path / "folder").equal


def test_the_distance_of_weights_is_numpy_s(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    before = {
        "f": draw.normal(size=(3, 50)).astype(np.float32),
        "b": draw.normal(size=(70,)).astype(ml_dtypes.bfloat16),
        "h": draw.normal(size=(33, 2)).astype(np.float16),
        "i": draw.integers(0, 255, 90).astype(np.uint8),
        "same": draw.normal(size=20).astype(np.float32),
    }
    after = {name: array.copy() for name, array in before.items()}
    after["f"][1, 7] += 0.5
    after["b"][3] = before["b"][3] + ml_dtypes.bfloat16(2)
    after["h"] = (before["h"] * np.float16(1.5)).astype(np.float16)
    after["i"][:4] ^= 255
    found = difference(weighty(tmp_path / "a.genai", before), weighty(tmp_path / "b.genai", after))
    assert not found.equal
    assert (found.same, [one["name"] for one in found.tensors]) == (1, ["f", "b", "h", "i"])
    for one in found.tensors[:3]:
        old, new = (side[one["name"]].astype(np.float64) for side in (before, after))
        assert one["change"] == "changed"
        assert one["max_abs"] == pytest.approx(np.abs(new - old).max())
        assert one["rel"] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old))
    assert found.tensors[3]["bytes"] == {"differ": 4, "of": 90}
    assert found.tensors[3]["before"] == "uint8[90]"
    assert [one["path"] for one in found.members] == ["weights/add-00.bin"]
    assert (found.manifest, found.graphs) == ([], [])


def test_moved_retyped_gone_and_come(tmp_path: Path) -> None:
    before = {"w": np.ones(40, np.float32), "t": np.ones(20, np.float32), "gone": np.zeros(3, np.float32)}
    after = {"w": np.ones(40, np.float32), "t": np.ones((4, 5), np.float16), "come": np.zeros((1, 3), np.float32)}
    found = difference(weighty(tmp_path / "a.genai", before), weighty(tmp_path / "b.genai", after, pad=640))
    said = {one["name"]: (one["change"], one.get("before"), one.get("after")) for one in found.tensors}
    assert said == {
        "w": ("moved", "weights/add-00.bin, byte 0", "weights/add-00.bin, byte 640"),
        "t": ("retyped", "float[20]", "float16[4,5]"),
        "gone": ("removed", "float[3]", None),
        "come": ("added", None, "float[1,3]"),
    }
    assert found.graphs == []  # the graph's file has other places in it, and computes the same


def test_infinite_and_undefined_weights_have_a_distance_too(tmp_path: Path) -> None:
    before = {"n": np.array([np.nan, np.inf, 1.0], np.float32), "zero": np.zeros(2, np.float32)}
    after = {"n": np.array([np.nan, np.inf, np.nan], np.float32), "zero": np.ones(2, np.float32)}
    found = difference(weighty(tmp_path / "a.genai", before), weighty(tmp_path / "b.genai", after))
    assert [(one["name"], one["max_abs"], one["rel"]) for one in found.tensors] == [
        ("n", "inf", "inf"),
        ("zero", 1.0, "inf"),
    ]
    json.dumps(found.tensors, allow_nan=False)


def test_graphs_are_compared_by_what_they_compute(tmp_path: Path) -> None:
    first = weighty(tmp_path / "a.genai", {})
    named = ADD.replace("y = Mul", "[first] y = Mul")
    assert difference(first, weighty(tmp_path / "b.genai", {}, text=named)).graphs == [
        {"name": "add", "change": "changed", "only": "names, texts or metadata"}
    ]
    other = ADD.replace("y = Mul (z, z)", "p = Pow (z, one)   y = Sub (p, z)").replace("float[N] x", "float[M] x")
    [found] = difference(first, weighty(tmp_path / "c.genai", {}, text=other)).graphs
    assert found["inputs"] == {"before": {"x": "f32[N]"}, "after": {"x": "f32[M]"}}
    assert found["operators"] == {
        "Mul": {"before": 1, "after": 0}, "Pow": {"before": 0, "after": 1}, "Sub": {"before": 0, "after": 1},
    }  # fmt: skip
    assert found["nodes"]["removed"] == {"count": 1, "first": ["y = Mul(z, z)"]}
    assert found["nodes"]["added"] == {"count": 2, "first": ["p = Pow(z, one)", "y = Sub(p, z)"]}
    assert "outputs" not in found
    order = ADD.replace("one = Constant <value = float {1.0}> ()\n", "").replace("one", "x")
    twice = order.replace("z = Add (x, x)", "z = Add (x, x)   w = Neg (x)")
    turned = order.replace("z = Add (x, x)", "w = Neg (x)   z = Add (x, x)")
    sides = (weighty(tmp_path / "d.genai", {}, text=twice), weighty(tmp_path / "e.genai", {}, text=turned))
    assert difference(*sides).graphs[0]["nodes"] == {"order": "the same nodes in another order"}


def test_a_variant_that_one_of_them_lacks(tmp_path: Path) -> None:
    first = talker(tmp_path / "a.genai")
    second = weighty(tmp_path / "b.genai", {})
    assert [(one["name"], one["change"]) for one in difference(first, second).graphs] == [
        ("decoder", "removed"), ("decoder (ort-cpu)", "removed"), ("add", "added"),
    ]  # fmt: skip


def test_tokenizers_and_templates(tmp_path: Path) -> None:
    changed = json.loads(tokenizer())
    vocab = changed["model"]["vocab"]
    del vocab["seven"]
    vocab |= {"eight": 7, "five": 6, "six": 5}
    changed["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    extra = {
        "tokenizer.json": json.dumps(changed).encode(),
        "chat.jinja": b"{% for m in messages %}\n{{ m }}\n{% endfor %}",
    }
    found = difference(talker(tmp_path / "a.genai"), talker(tmp_path / "b.genai", extra))
    assert found.tokenizer == {
        "added": {"eight": 7},
        "removed": {"seven": 7},
        "renumbered": {"five": [5, 6], "six": [6, 5]},
        "settings": [
            {"path": "pre_tokenizer.type", "change": "changed", "before": "Whitespace", "after": "WhitespaceSplit"}
        ],
    }
    assert found.template[:2] == ["--- chat.jinja", "+++ chat.jinja"]
    assert found.template[-3:] == ["+{% for m in messages %}", "+{{ m }}", "+{% endfor %}"]


def test_memory_is_that_of_chunks(tmp_path: Path) -> None:
    """64 MiB of weights that all differ: read through the mapping, some MiB at a time."""
    sides = []
    for seed in (1, 2):
        array = np.full(1 << 24, seed, np.float32)
        sides.append(weighty(tmp_path / f"{seed}.genai", {"big": array}))
    tracemalloc.start()
    steps: list[tuple[int, int]] = []
    with open_bundle(sides[0]) as one, open_bundle(sides[1]) as other:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        found = compare(one, other, lambda done, total: steps.append((done, total)))
        peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert found.tensors[0]["max_abs"] == 1.0
    assert steps == [(1 << 26, 1 << 26)]
    assert peak < 60 << 20


def test_documents_by_path() -> None:
    before = {"a": {"b": [1, 2]}, "list": [{"x": 1}, {"x": 2}], "gone": 1, "n": 1, "t": True}
    after = {"a": {"b": [1, 3]}, "list": [{"x": 1}], "docs/x": None, "n": 1.0, "t": 1}
    assert changes(before, before) == []
    assert changes(before, after) == [
        {"path": "a.b", "change": "changed", "before": [1, 2], "after": [1, 3]},
        {"path": "['docs/x']", "change": "added", "after": None},
        {"path": "gone", "change": "removed", "before": 1},
        {"path": "list[1]", "change": "removed", "before": {"x": 2}},
        {"path": "n", "change": "changed", "before": 1, "after": 1.0},
        {"path": "t", "change": "changed", "before": True, "after": 1},
    ]


def test_inside_and_outside_the_graph(tmp_path: Path) -> None:
    """A small tensor may be stored as raw bytes or as numbers: the same values are the same tensor."""
    values = np.arange(4, dtype=np.float32)
    models = []
    for typed in (False, True):
        model = onnx.parser.parse_model(HEADER + ADD)
        tensor = numpy_helper.from_array(values, "k")
        if typed:
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.tolist())
        model.graph.initializer.append(tensor)
        models.append(model.SerializeToString())
    sides = []
    for index, raw in enumerate(models):
        target = tmp_path / f"{index}.genai"
        manifest = {
            "format": "1.0", "name": "inside", "graphs": {"add": {"file": "add.onnx"}},
            "inputs": {"x": {"type": "f32", "dims": ["N"]}}, "outputs": {"y": {"type": "f32", "dims": ["N"]}},
            "steps": STEPS,
        }  # fmt: skip
        write_bundle(target, manifest, {"add.onnx": raw})
        sides.append(target)
    found = difference(*sides)
    assert (found.same, found.tensors) == (1, [])
    assert [one["path"] for one in found.members] == ["add.onnx"]
