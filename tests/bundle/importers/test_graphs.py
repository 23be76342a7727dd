# SPDX-License-Identifier: Apache-2.0
"""Foreign graphs are brought into the form of a bundle without a change of what they compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bundle.importers import tiny
from genai_bundle.errors import SourceError
from genai_bundle.importers.graphs import one_row, pack_graphs, read_graph

WIDE = 300


def branching() -> onnx.ModelProto:
    """Each branch has a large weight of its own, both under one name."""
    branches = []
    for seed, name in enumerate(("yes", "no")):
        weight = tiny.weights(seed, w=(WIDE,))["w"]
        node = onnx.helper.make_node("Add", ["x", "w"], [f"{name}_y"])
        out = onnx.helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, [WIDE])
        branches.append(onnx.helper.make_graph([node], name, [], [out], [onnx.numpy_helper.from_array(weight, "w")]))
    choose = onnx.helper.make_node("If", ["which"], ["y"], then_branch=branches[0], else_branch=branches[1])
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [WIDE])
    which = onnx.helper.make_tensor_value_info("which", onnx.TensorProto.BOOL, [])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [WIDE])
    graph = onnx.helper.make_graph([choose], "main", [x, which], [y])
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_weights_of_branches_move_to_the_main_graph(tmp_path: Path) -> None:
    onnx.save(branching(), tmp_path / "g.onnx")
    graph = read_graph("g", tmp_path / "g.onnx")
    assert [tensor.name for tensor in graph.model.graph.initializer] == ["w", "w.0"]
    runs = [
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for model in (branching(), graph.model)
    ]
    for which in (True, False):
        feeds = {"x": np.arange(WIDE, dtype=np.float32), "which": np.array(which)}
        [before], [after] = (run.run(None, feeds) for run in runs)
        assert np.array_equal(before, after)
    _, members, _ = pack_graphs([graph])
    assert "weights/g-00.bin" in members


def test_a_graph_for_two_requests_takes_one(tmp_path: Path) -> None:
    text = "g (float[2,3] x, float[1] scale) => (float[2,3] y) { y = Mul (x, scale) }"
    onnx.save(tiny.model(text, {}), tmp_path / "g.onnx")
    graph, rows = one_row(read_graph("g", tmp_path / "g.onnx"), {"x": 0, "y": 0})
    assert (rows, graph.ports.inputs["x"].dims, graph.ports.outputs["y"].dims) == (2, (1, 3), (1, 3))
    run = ort.InferenceSession(graph.model.SerializeToString(), providers=["CPUExecutionProvider"])
    [y] = run.run(None, {"x": np.array([[1, 2, 3]], np.float32), "scale": np.array([2], np.float32)})
    assert y.tolist() == [[2, 4, 6]]
    same, rows = one_row(graph, {"x": 0, "y": 0})
    assert rows == 1
    assert same is graph


def test_compiled_graphs_are_refused_by_name(tmp_path: Path) -> None:
    node = onnx.helper.make_node("EPContext", ["x"], ["y"], name="blob", domain="com.microsoft")
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports[:1], ports[1:]))
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match=r"g\.onnx: node 'blob' \(EPContext\)"):
        read_graph("g", tmp_path / "g.onnx")


WITHOUT = """
import sys
from pathlib import Path
for name in ("torch", "transformers", "onnxscript", "safetensors", "gguf", "peft"):
    sys.modules[name] = None
from genai_bundle.builder.build import build
for source in sys.argv[1:]:
    build(Path(source), Path(source + ".genai"))
"""


def test_folders_and_recipes_need_no_more_than_the_package_does(tmp_path: Path) -> None:
    """Without PyTorch, and without the other packages of the extra `build`."""
    folder = tmp_path / "folder"
    folder.mkdir()
    onnx.save(tiny.decoder(), folder / "model.onnx")
    tiny.write_json(folder / "config.json", {"vocab_size": tiny.WORDS, "max_position_embeddings": 64})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: r\ngraphs: {g: {onnx: 'g (float[N] x) => (float[N] y) { y = Neg (x) }'}}\n"
                      "inputs: {x: 'f32[N]'}\noutputs: {y: 'f32[N]'}\n"
                      "steps: [{run: g, in: {x: x}, out: {y: z}}, {emit: {y: z}}]\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", WITHOUT, folder, recipe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_weights_name_the_file(tmp_path: Path) -> None:
    tiny.scatter_weights(tiny.decoder(), tmp_path / "g.onnx", 2)
    (tmp_path / "g.onnx_data_1").unlink()
    with pytest.raises(SourceError, match=r"cannot read g\.onnx_data_1"):
        pack_graphs([read_graph("g", tmp_path / "g.onnx")])
