# SPDX-License-Identifier: Apache-2.0
"""Loading, arguments and errors of the pipeline as an application meets them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import genai_runner
from genai_bundle.errors import BackendError, UsageError
from genai_runner.backends.scripted import ScriptedBackend
from runner.tiny import bundle, counter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return counter(tmp_path / "counter.genai")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "onnxruntim"}, "no backend is called 'onnxruntim'"),
        ({"variant": "fast"}, "there is no variant 'fast'"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_wrong_arguments_of_load(path: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        genai_runner.load(path, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "input 'ids' .i64. is needed"),
        ({"ids": [1], "temprature": 1}, "unknown input or option 'temprature'"),
        ({"ids": [0.5]}, "input 'ids' takes i64"),
        ({"ids": "one"}, "input 'ids' takes i64"),
        ({"ids": [[1], [2]]}, r"takes i64\[1, N\], got shape \[2, 1\]"),
        ({"ids": []}, "the prompt is empty"),
        ({"ids": [1], "temperature": -1}, "temperature is -1"),
    ],
)
def test_wrong_arguments_of_a_call(path: Path, arguments: dict[str, object], message: str) -> None:
    pipe = genai_runner.load(path)
    with pytest.raises(UsageError, match=message):
        pipe(**arguments)


def test_the_only_required_input_is_the_prompt(path: Path) -> None:
    assert genai_runner.load(path)([1], max_tokens=2).tokens == [2, 3]
    with pytest.raises(UsageError, match="given twice"):
        genai_runner.load(path)([1], ids=[1])


def test_scripted_backend_answers_and_records(path: Path) -> None:
    lines = [{"logits": np.eye(8)[None, [token]], "q": np.zeros((1, 1, 1, 1))} for token in (7, 5)]
    backend = ScriptedBackend({"decoder": lines})
    pipe = genai_runner.load(path, backend)
    assert pipe([1], max_tokens=2).tokens == [7, 5]
    assert [feeds["ids"].tolist() for _, feeds in backend.calls] == [[[1]], [[7]]]
    assert [feeds["mask"].tolist() for _, feeds in backend.calls] == [[[1]], [[1, 1]]]
    with pytest.raises(BackendError, match="has 2 lines, the run needs more"):
        pipe([1], max_tokens=3)


def test_scripted_backend_without_a_script_gives_zeros(path: Path) -> None:
    assert genai_runner.load(path, "scripted")([1], max_tokens=2).tokens == [0, 0]


def test_a_failing_graph_names_itself_and_its_step(tmp_path: Path) -> None:
    graph = "add (float[N] a, float[M] b) => (float[K] c) { c = Add (a, b) }"
    vector = {"type": "f32", "dims": ["N"]}
    path = bundle(
        tmp_path / "add.genai",
        {"add": graph},
        {
            "inputs": {"a": vector, "b": vector},
            "outputs": {"c": vector},
            "steps": [{"run": "add", "in": {"a": "a", "b": "b"}, "out": {"c": "sum"}}, {"emit": {"c": "sum"}}],
        },
    )
    pipe = genai_runner.load(path)
    assert pipe(a=[1, 2], b=[3, 4]).outputs["c"].tolist() == [4, 6]
    with pytest.raises(BackendError, match=r"steps\[0\].*graph 'add' \(add.onnx\) failed"):
        pipe(a=[1, 2], b=[3, 4, 5])


def test_requests_in_several_threads_do_not_disturb_each_other(path: Path) -> None:
    pipe = genai_runner.load(path, threads=1)

    def call(start: int) -> list[int]:
        return pipe(ids=[start], max_tokens=40).tokens

    expected = {start: call(start) for start in range(8)}
    with ThreadPoolExecutor(8) as pool:
        starts = [number % 8 for number in range(64)]
        for start, tokens in zip(starts, pool.map(call, starts), strict=True):
            assert tokens == expected[start]


def test_a_pipeline_outlives_its_closed_bundle(path: Path) -> None:
    with genai_runner.load(path) as pipe:
        stream = pipe.stream([1], max_tokens=3)
    assert stream.result.tokens == [2, 3, 4]


@pytest.mark.parametrize("place", ["renamed", "symlink", "folder", "elsewhere"])
def test_a_bundle_runs_wherever_it_lies(
    path: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "renamed":
        path = path.rename(tmp_path / "other name.bin")
    elif place == "symlink":
        link = tmp_path / "link.genai"
        link.symlink_to(path)
        path = link
    elif place == "folder":
        folder = tmp_path / "read only"
        folder.mkdir()
        path = path.rename(folder / path.name)
        folder.chmod(0o555)
    else:
        monkeypatch.chdir("/")
    assert genai_runner.load(path)([1], max_tokens=3).tokens == [2, 3, 4]
