# SPDX-License-Identifier: Apache-2.0
"""One test for each rule that spec/ gives to builders; the test's name holds the rule's id."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from genai_bundle.builder import shards as rules
from genai_bundle.builder.graph_files import pack_graph
from genai_bundle.bundle import open_bundle
from genai_bundle.writer import Shard, write_bundle
from runner.tiny import counter
from spec.recipes import LETTERS, build

MANIFEST: dict[str, Any] = {"format": "1.0", "name": "x", "graphs": {}, "inputs": {}, "outputs": {}, "steps": []}


def packed(*sizes: int) -> tuple[onnx.ModelProto, dict[str, Shard]]:
    """A graph with an initializer of each size in bytes, and its shards."""
    tensors = [onnx.numpy_helper.from_array(np.full(size, i, np.uint8), f"t{i}") for i, size in enumerate(sizes)]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    graphs, shards = pack_graph("g", {"g.onnx": (model, None, "g")})
    return onnx.load_from_string(graphs["g.onnx"]), shards


def places(model: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """Shard and offset of every tensor that lies outside of the graph."""
    found = {}
    for tensor in model.graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if entry:
            found[tensor.name] = entry["location"], int(entry["offset"])
    return found


def test_b1_a_bundle_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.genai"
    write_bundle(target, MANIFEST, {"docs/a": b"old"})
    old = target.read_bytes()
    with target.open("rb") as reader:

        def interrupt(finished: Path) -> None:
            assert finished.parent == target.parent
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_bundle(target, MANIFEST, {"docs/a": b"new"}, overwrite=True, before_commit=interrupt)
        assert [path.name for path in tmp_path.iterdir()] == ["x.genai"]
        assert target.read_bytes() == old
        write_bundle(target, MANIFEST, {"docs/a": b"new"}, overwrite=True)
        assert reader.read() == old


def test_b2_the_same_members_give_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    files = []
    for folder in folders:
        folder.mkdir()
        files.append(build(LETTERS, folder).read_bytes())
    assert files[0] == files[1]


def test_b3_a_shard_is_at_most_a_gigabyte_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rules.MAX_SHARD == 1 << 30
    monkeypatch.setattr(rules, "MAX_SHARD", 10_000)
    model, shards = packed(6_000, 5_000, 20_000, 3_000)
    assert [shard.size for shard in shards.values()] == [6_000, 5_000, 20_000, 3_000]
    assert [shard for shard, _ in places(model).values()] == [f"weights/g-0{i}.bin" for i in range(4)]


def test_b4_large_tensors_begin_at_pages_and_others_at_cache_lines() -> None:
    model, _ = packed(1_025, 1 << 20, 1_100, (1 << 20) - 1)
    assert [offset for _, offset in places(model).values()] == [0, 65536, 65536 + (1 << 20), 65536 + (1 << 20) + 1152]


def test_b5_small_tensors_stay_in_the_graph() -> None:
    model, _ = packed(1_023, 1_024)
    assert list(places(model)) == ["t1"]


def test_b6_nothing_of_the_machine_is_in_a_bundle(tmp_path: Path) -> None:
    path = build(LETTERS, tmp_path)
    content = path.read_bytes()
    names = {str(tmp_path), platform.node(), f"/{getpass.getuser()}/"}
    assert [name for name in names if len(name) > 3 and name.encode() in content] == []
    with open_bundle(counter(tmp_path / "plain.genai")) as bundle:
        assert "source" not in json.loads(bundle.read("manifest.json"))


def test_b8_a_form_that_differs_is_not_a_default_graph(tmp_path: Path) -> None:
    from genai_bundle.builder.prove import source_graph
    from genai_bundle.importers.forms import agreed
    from genai_bundle.importers.graphs import SourceGraph, pack_graphs

    def model(op: str, domain: str = "") -> onnx.ModelProto:
        sets = '"": 23, "com.microsoft": 1'
        return onnx.parser.parse_model(
            f"<ir_version: 10, opset_import: [{sets}]> g (float[4] x) => (float[4] y) {{ y = {domain}{op} (x) }}"
        )

    file = tmp_path / "g.onnx"
    onnx.save(model("Gelu", "com.microsoft."), file)
    given = {"x": np.array([-1, 0, 1, 2], np.float32)}
    for op, kept in (("Gelu", True), ("Relu", False)):
        notes: list[str] = []
        graph = SourceGraph("g", onnx.load(file), file, portable=model(op))
        graph = agreed(graph, source_graph(file), source_graph, lambda run: [run(given)["y"]], notes)
        entries, _, features = pack_graphs([graph])
        names = [variant["name"] for variant in entries["g"].get("variants", ())]
        assert (names, features) == ((["ort"], []) if kept else ([], ["domain:com.microsoft"]))
        assert len(notes) == (0 if kept else 1)


def test_b7_quantised_weights_are_there_once(tmp_path: Path) -> None:
    from genai_bundle.builder.options import BuildOptions
    from genai_bundle.builder.storage.spool import Spool
    from genai_bundle.builder.storage.store import store_weights
    from genai_bundle.builder.tensors import WeightTensor
    from genai_bundle.builder.weights import pack

    text = """<ir_version: 10, opset_import: ["" : 23]>
        g (int64[b,s] input_ids, float[512,1024] w) => (float[b,s,512] y)
        { e = Gather(w, input_ids) t = Transpose<perm = [1, 0]>(w) y = MatMul(e, t) }"""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    value = model.graph.inputs.pop()
    matrix = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)
    value.const_value = WeightTensor("w", matrix.shape, ir.DataType.FLOAT, lambda part: matrix[part])
    model.graph.register_initializer(value)
    models, entries = {"g.onnx": model}, {"g": {"file": "g.onnx"}}
    with Spool(tmp_path) as spool:
        store_weights(models, entries, BuildOptions(quantize="int4"), spool, lambda _: None)
        assert list(models) == ["g.onnx", "g.ort-cpu.onnx"]
        _, shards = pack(models, "g")
    elements, scales, zeros = matrix.size // 2, matrix.size // 32 * 4, matrix.size // 32 // 2
    assert sum(shard.size for shard in shards.values()) <= elements + scales + zeros + 3 * 65536
