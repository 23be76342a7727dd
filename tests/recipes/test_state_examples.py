# SPDX-License-Identifier: Apache-2.0
"""Every way of keeping state, in recipes over graphs that one can follow by hand; see test_examples.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import genai_runner
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import BackendError, UsageError
from genai_bundle.writer import write_bundle
from recipes.conftest import Built

Open = Callable[..., Any]


def is_refused(pipeline: Open, backend: str, name: str) -> bool:
    """OpenVINO has no operator that scatters, and must say so."""
    if backend != "openvino":
        return False
    with pytest.raises(BackendError, match="TensorScatter"):
        pipeline(name)
    return True


@pytest.mark.parametrize("prompt", [[5], [5, 6, 7], [5, 6, 7, 8, 9, 1, 2]])
def test_two_groups(pipeline: Open, backend: str, prompt: list[int]) -> None:
    """A ring of three takes one token at once, so the prompt is run in pieces; only the last piece's logits count."""
    if is_refused(pipeline, backend, "two-groups"):
        return
    ids, new = list(prompt), []
    for _ in range(9):
        new.append((sum(ids) + 2 * sum(ids[-3:]) + len(ids) - 1) % 16)
        ids.append(new[-1])
    assert pipeline("two-groups")(ids=[prompt], max_tokens=9).tokens == new


@pytest.mark.parametrize("prompt", [[5], [5, 6, 7], [15] * 40])
def test_recurrent(pipeline: Open, prompt: list[int]) -> None:
    state, fed, new = 0, list(prompt), []
    for _ in range(7):
        for token in fed:
            state = (3 * state + 5 * token) % 97
        fed = [state % 16]
        new.append(fed[0])
    assert pipeline("recurrent")(ids=[prompt], max_tokens=7).tokens == new


def keys(ids: NDArray[np.int64], speeds: list[float]) -> NDArray[np.float64]:
    angles = np.asarray(ids)[:, None] * np.array(speeds)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def attend(prompt: list[int], count: int, speeds: list[float]) -> tuple[list[int], NDArray[np.float64]]:
    """Greedy ids and their logits of one head of causal attention, in f64."""
    table = keys(np.arange(16), speeds)
    ids, logits = list(prompt), []
    for _ in range(count):
        held = np.array(ids)
        scores = keys(held, speeds) @ keys(held[-1:], speeds)[0] / np.sqrt(table.shape[1])
        weights = np.exp(scores - scores.max())
        logits.append(weights / weights.sum() @ keys((held + 3) % 16, speeds) @ table.T)
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :], np.stack(logits)


def test_scatter(pipeline: Open, backend: str) -> None:
    """Eight positions: three of the prompt and five new ones."""
    if is_refused(pipeline, backend, "scatter"):
        return
    run = pipeline("scatter")
    tokens, logits = attend([5, 6, 7], 5, [0.5, 0.125])
    assert len(set(tokens)) > 2
    result = run(ids=[[5, 6, 7]], max_tokens=20)
    assert (result.tokens, result.finish_reason) == (tokens, "length")
    np.testing.assert_allclose(result.outputs["logits"][:, 0], logits, atol=1e-5)
    with pytest.raises(UsageError):
        run(ids=[[1] * 9])


@pytest.mark.parametrize("variant", ["auto", "portable", "ort-cpu"])
def test_shared_buffer(pipeline: Open, backend: str, variant: str) -> None:
    if backend != "onnxruntime" and variant == "ort-cpu":
        with pytest.raises(UsageError):
            pipeline("shared-buffer", variant=variant)
        return
    run = pipeline("shared-buffer", variant=variant)
    member = "decoder.ort-cpu.onnx" if backend == "onnxruntime" and variant != "portable" else "decoder.onnx"
    assert run.variants == {"decoder": member}
    tokens, logits = attend([5, 6, 7], 21, [0.5, 0.25, 0.125, 0.0625])
    assert len(set(tokens)) > 2
    result = run(ids=[[5, 6, 7]], max_tokens=100)
    assert (result.tokens, result.finish_reason) == (tokens, "length")
    np.testing.assert_allclose(result.outputs["logits"][:, 0], logits, atol=1e-5)


def test_session(pipeline: Open) -> None:
    run = pipeline("session")
    session, other = run.session(), run.session()
    assert session(x=[[1.0, 2.0, 3.0]]).outputs["mean"].tolist() == [2]
    assert session(x=[[10.0]]).outputs["mean"].tolist() == [4]
    assert other(x=[[10.0]]).outputs["mean"].tolist() == [10]
    assert session(x=[[4.0, 4.0]]).outputs["mean"].tolist() == [4]
    assert run(x=[[7.0]]).outputs["mean"].tolist() == [7]


def test_borrowed(pipeline: Open) -> None:
    """<s> the cat: the drafter sees nothing at first, then what the decoder held before each run."""
    tokens, drafts = borrowed()
    result = pipeline("borrowed")("the cat", max_tokens=7)
    assert result.outputs["tokens"].tolist() == [tokens]
    assert result.outputs["drafts"].ravel().tolist() == drafts


@pytest.mark.openvino
@pytest.mark.parametrize("graph", ["decoder", "drafter"])
def test_what_is_borrowed_may_be_of_another_engine(graph: str, built: Built, tmp_path: Path) -> None:
    with open_bundle(built("examples/borrowed")) as opened:
        manifest = json.loads(opened.manifest.raw)
        members = {path: opened.read(path) for path in manifest.pop("files")}
    manifest["graphs"][graph]["place"] = "host"
    write_bundle(tmp_path / "x.genai", manifest, members)
    tokens, drafts = borrowed()
    with genai_runner.load(tmp_path / "x.genai", "openvino") as pipe:
        result = pipe("the cat", max_tokens=7)
        assert {one.backend for one in pipe.placements.values()} == {"openvino", "onnxruntime"}
    assert result.outputs["tokens"].tolist() == [tokens]
    assert result.outputs["drafts"].ravel().tolist() == drafts


def borrowed() -> tuple[list[int], list[int]]:
    """New tokens, and what the drafter saw before each."""
    ids, drafts, new, held = [1, 5, 6], [], [], 0
    for _ in range(7):
        drafts.append(held)
        held = sum(ids)
        new.append((held + 2 * drafts[-1] + 5) % 16)
        ids.append(new[-1])
        if new[-1] == 2:
            break
    return new, drafts
