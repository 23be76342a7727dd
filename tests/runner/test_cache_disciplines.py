# SPDX-License-Identifier: Apache-2.0
"""Every way of keeping state on every backend, in runs of any length, against the whole sequence at once in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genai_runner
from genai_bundle.errors import BackendError, UsageError
from runner import disciplines as made
from runner.disciplines import IDS, RUNS, spans

TOTAL = {"total": "kv.total"}
WRITTEN = {"start": "kv.len", "total": "kv.total"}
RING = {"start": "kv.len", "last": "kv.last", "filled": "kv.mask"}

Make = Callable[..., Path]


@pytest.fixture(params=["onnxruntime", "reference", pytest.param("openvino", marks=pytest.mark.openvino)])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda graph, fields, **state: made.build(tmp_path / "x.genai", graph, fields, **state)


def lacks_tensor_scatter(backend: str) -> bool:
    return backend == "openvino"


def check(path: Path, backend: str, runs: list[int], expected: Any) -> None:
    """A session in these runs gives what the whole sequence gives, and so does the next one, which begins empty."""
    with genai_runner.load(path, backend, threads=1) as pipe:
        for session in (pipe.session(), pipe.session()):
            for start, stop in spans(runs):
                y = session(ids=[IDS[start:stop]]).outputs["y"]
                np.testing.assert_allclose(y, expected[:, :, start:stop], atol=2e-5, err_msg=f"{start} to {stop}")


@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_growing_with_a_causal_and_an_explicit_mask(make: Make, backend: str, runs: list[int]) -> None:
    check(make(made.GROWING, TOTAL, update="append"), backend, runs, made.attended(IDS, made.hides_every_fifth))


@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_shared_buffer_that_a_standard_operator_writes(make: Make, backend: str, runs: list[int]) -> None:
    path = make(made.decoder("", "P", made.BUFFER), {}, update="shared", capacity=30)
    check(path, backend, runs, made.attended(IDS, made.hides_every_fifth))


@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("operator", [True, False], ids=["TensorScatter", "ScatterElements"])
def test_fixed_buffer(make: Make, backend: str, runs: list[int], operator: bool) -> None:
    graph = made.scattered(20) if operator else made.decoder("", "20", made.BUFFER)
    path = make(graph, WRITTEN if operator else {}, update="scatter", capacity=20)
    if operator and lacks_tensor_scatter(backend):
        with pytest.raises(BackendError, match=r"TensorScatter \(linear\) is not available"):
            genai_runner.load(path, backend)
        return
    check(path, backend, runs, made.attended(IDS, made.hides_every_fifth))


@pytest.mark.parametrize("operator", [True, False], ids=["TensorScatter", "ScatterElements"])
@pytest.mark.parametrize(
    ("capacity", "runs"),
    [(4, [1] * 18), (7, [4, 4, 4, 4, 2]), (7, [1, 4, 1, 1, 4, 3, 4]), (9, [6, 5, 1, 6])],
)
def test_ring_shorter_than_the_sequence(
    make: Make, backend: str, capacity: int, runs: list[int], operator: bool
) -> None:
    path = make(made.ring(capacity, 4, operator=operator), RING, update="ring", window=4, capacity=capacity)
    if operator and lacks_tensor_scatter(backend):
        with pytest.raises(BackendError, match=r"TensorScatter \(circular\) is not available"):
            genai_runner.load(path, backend)
        return
    check(path, backend, runs, made.attended(IDS, made.within(4)))


def test_ring_refuses_a_run_that_would_overwrite_what_it_reads(make: Make, backend: str) -> None:
    path = make(made.ring(7, 4, operator=False), RING, update="ring", window=4, capacity=7)
    with genai_runner.load(path, backend) as pipe, pytest.raises(UsageError, match="takes 4 tokens at once, not 5"):
        pipe(ids=[IDS[:5]])
