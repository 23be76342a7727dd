# SPDX-License-Identifier: Apache-2.0
"""One ONNX file is answered with a draft of a recipe, which builds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bundle.importers import tiny
from cli.samples import command
from genai_bundle.bundle import open_bundle
from genai_runner import load

MODELS = ["mnist/mnist", "silero-vad/silero_vad", "super-resolution/pytorch_super_resolution", "gtcrn/gtcrn_simple"]


def draft(model: Path, tmp_path: Path) -> Path:
    """The bundle that the draft for a graph builds, without a change."""
    done = command("build", model, "--draft-recipe", "-o", tmp_path / "recipe.yaml")
    assert done.code == 0, done.err
    done = command("build", tmp_path / "recipe.yaml", "-o", tmp_path / "x.genai")
    assert done.code == 0, done.err
    return tmp_path / "x.genai"


def test_a_graph_alone_is_refused_with_what_to_do(tmp_path: Path) -> None:
    onnx.save(tiny.encoder(), tmp_path / "model.onnx")
    done = command("build", tmp_path / "model.onnx", "-o", tmp_path / "x.genai")
    assert done.code == 2
    assert "genai-bundle build model.onnx --draft-recipe -o model.yaml" in " ".join(done.err.split())
    assert not (tmp_path / "x.genai").exists()


@pytest.mark.shared
@pytest.mark.parametrize("name", MODELS)
def test_the_draft_of_a_trained_model_builds(name: str, shared: Path, tmp_path: Path) -> None:
    draft(shared / "models" / f"{name}.onnx", tmp_path)


def test_names_become_names_of_the_grammar_and_states_are_found(tmp_path: Path) -> None:
    text = """
    step (float[batch,4] "audio::in.1", float[1,4] h, float[batch,past_len,4] past_x)
      => (float[batch,4] y, float[1,4] hn, float[batch,total_len,4] present_x)
    <int64[1] one = {1}> {
      y = Neg (h)   hn = Add (h, "audio::in.1")   new = Unsqueeze (hn, one)
      present_x = Concat <axis = 1> (past_x, new)
    }"""
    onnx.save(tiny.model(text, {}), tmp_path / "a model.onnx")
    with load(draft(tmp_path / "a model.onnx", tmp_path), threads=1) as pipeline:
        manifest = pipeline.manifest
        assert manifest.name == "a-model"
        states = {state.update: dict(state.ports) for state in manifest.state.values()}
        assert states == {"replace": {"h": "hn"}, "append": {"past_x": "present_x"}}
        [given] = manifest.inputs
        found = pipeline(**{given: np.ones((1, 4), np.float32)}).outputs["y"]
    assert np.array_equal(found, np.zeros((1, 4)))


def test_what_no_draft_can_be_made_of(tmp_path: Path) -> None:
    onnx.save(tiny.model("g (double[N] x) => (double[N] y) { y = Neg (x) }", {}), tmp_path / "wide.onnx")
    done = command("build", tmp_path / "wide.onnx", "--draft-recipe", "-o", tmp_path / "r.yaml")
    assert done.code == 3
    assert "port 'x' is f64" in done.err
    done = command("build", tmp_path, "--draft-recipe", "-o", tmp_path / "r.yaml")
    assert done.code == 2
    (tmp_path / "r.yaml").write_text("mine")
    done = command("build", tmp_path / "wide.onnx", "--draft-recipe", "-o", tmp_path / "r.yaml")
    assert done.code == 2
    assert (tmp_path / "r.yaml").read_text() == "mine"


def test_ports_of_a_decoder_are_found_with_their_axis(tmp_path: Path) -> None:
    onnx.save(tiny.decoder(), tmp_path / "model.onnx")
    with open_bundle(draft(tmp_path / "model.onnx", tmp_path)) as bundle:
        states = list(bundle.manifest.state.values())
    assert [(state.update, state.axis) for state in states] == [("append", 2)] * 2
