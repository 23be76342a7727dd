# SPDX-License-Identifier: Apache-2.0
"""The backend for ONNX Runtime: what stays bound from run to run never changes what a run gives."""

import numpy as np
import onnx.parser
import pytest

from genai_runner.backends.base import Graph, LoadOptions
from genai_runner.backends.onnxruntime import BACKEND


def graph(text: str) -> Graph:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 22]>\n{text}')
    return BACKEND.load("g", model.SerializeToString(), {}, LoadOptions())


@pytest.fixture
def twice() -> Graph:
    return graph("g (float[N] x) => (float[N] y) { y = Add (x, x) }")


def test_values_that_were_handed_out_stay_as_they_are(twice: Graph) -> None:
    given = [np.full(3, number, np.float32) for number in range(6)]
    outputs = [twice.run({"x": one}, ["y"])["y"] for one in given]
    for one, output in zip(given, outputs, strict=True):
        np.testing.assert_array_equal(output, 2 * one)


def test_an_input_that_was_changed_in_place_is_read_anew(twice: Graph) -> None:
    array = np.zeros(3, np.float32)
    for number in range(5):
        array[:] = number
        np.testing.assert_array_equal(twice.run({"x": array}, ["y"])["y"], np.full(3, 2 * number))


def test_inputs_may_change_their_shape(twice: Graph) -> None:
    for size in (3, 3, 3, 1, 1, 2_000_000, 2_000_000, 2_000_000, 3, 0, 0, 3):
        array = np.arange(size, dtype=np.float32)
        np.testing.assert_array_equal(twice.run({"x": array}, ["y"])["y"], 2 * array)


def test_a_shape_that_follows_from_values() -> None:
    places = graph("g (float[N] x) => (int64[1,M] y) { y = NonZero (x) }")
    for row in ([0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0], [1, 0, 0]):
        got = places.run({"x": np.array(row, np.float32)}, ["y"])["y"]
        np.testing.assert_array_equal(got, np.flatnonzero(row)[None])


def test_outputs_may_be_written_in_place_and_then_not_and_then_elsewhere(twice: Graph) -> None:
    first, second, one = np.zeros(2, np.float32), np.zeros(2, np.float32), np.ones(2, np.float32)
    for into in (first, None, first, second, None, None, None, first):
        first[:] = second[:] = 0
        if into is None:
            np.testing.assert_array_equal(twice.run({"x": one}, ["y"])["y"], [2, 2])
        else:
            assert twice.run({"x": one}, ["y"], into={"y": into}) == {}
            np.testing.assert_array_equal(into, [2, 2])
            assert first.sum() + second.sum() == 4


def test_a_small_state_is_updated_in_place() -> None:
    counter = graph(
        "g (float[2] past, float[2] x) => (float[2] present, float y) {present = Add (past, x) y = ReduceSum (present)}"
    )
    state, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    for number in range(1, 6):
        got = counter.run({"past": state, "x": one}, ["y", "present"], keep=["present"], into={"present": state})
        assert (state.tolist(), got["y"].item()) == ([number, number], 2 * number)


def test_a_run_that_fails_leaves_the_next_ones_right() -> None:
    reshape = graph("g (float[N] x, int64[R] shape) => (float[A, B] y) { y = Reshape (x, shape) }")
    array = np.arange(6, dtype=np.float32)
    for shape in ([2, 3], [2, 3], [2, 3], [4, 4], [3, 2], [2, 3], [2, 3], [4, 4], [6, 1]):
        feeds = {"x": array, "shape": np.array(shape)}
        if shape == [4, 4]:
            with pytest.raises(Exception, match="reshaped"):
                reshape.run(feeds, ["y"])
        else:
            np.testing.assert_array_equal(reshape.run(feeds, ["y"])["y"], array.reshape(shape))
