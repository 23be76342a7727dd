# SPDX-License-Identifier: Apache-2.0
"""OpenVINO beside other engines: the same tokens, state that goes back exactly, and no wrong answer after a failure."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import genai_runner
from conftest import SAMPLE, optional
from genai_bundle.errors import BackendError, UsageError
from genai_runner.backends.base import LoadOptions, StatePort
from runner.tiny import COUNTER, counter, model

pytestmark = pytest.mark.openvino
ov = optional("openvino", "openvino")

from genai_runner.backends import _openvino_model as models  # noqa: E402
from genai_runner.backends.openvino import BACKEND, Held  # noqa: E402

PROMPTS = ("Once upon a time", "Lily and Max went to the", "One day a small robot found a red ball. It")
GROWS = StatePort("p", "q", "append", 2)
KEEP = LoadOptions(threads=2, states=(GROWS,))


@pytest.fixture(scope="module")
def pipe() -> Iterator[Any]:
    with genai_runner.load(SAMPLE, "openvino") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def peer() -> Iterator[Any]:
    with genai_runner.load(SAMPLE, "onnxruntime", variant="portable") as loaded:
        yield loaded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return counter(tmp_path / "counter.genai")


def feeds(ids: list[int], past: Any, held: int) -> dict[str, Any]:
    """One run of COUNTER with `held` tokens in its cache."""
    return {"ids": np.array([ids]), "mask": np.ones((1, held + len(ids)), np.int64), "p": past}


EMPTY = np.zeros((1, 1, 0, 1), np.float32)


# -- the same as others -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 1.2, "seed": 5}], ids=["greedy", "sampled"])
def test_the_sample_gives_the_tokens_of_onnxruntime(pipe: Any, peer: Any, prompt: str, how: dict[str, Any]) -> None:
    assert pipe(prompt, max_tokens=48, **how).tokens == peer(prompt, max_tokens=48, **how).tokens


def test_pieces_of_a_stream_are_those_of_onnxruntime(pipe: Any, peer: Any) -> None:
    pieces = [list(one.stream(PROMPTS[0], max_tokens=12, temperature=0)) for one in (pipe, peer)]
    assert pieces[0] == pieces[1]


def test_the_folder_form_runs(tmp_path: Path, pipe: Any) -> None:
    from zipfile import ZipFile

    ZipFile(SAMPLE).extractall(tmp_path / "folder")
    with genai_runner.load(tmp_path / "folder", "openvino", threads=1) as loaded:
        got = loaded(PROMPTS[0], max_tokens=8, temperature=0).tokens
    assert got == pipe(PROMPTS[0], max_tokens=8, temperature=0).tokens


# -- state in the request ---------------------------------------------------------------------------------------------


def test_rewinding_gives_the_very_same_logits(pipe: Any) -> None:
    generator = pipe.generator(PROMPTS[0], temperature=0, max_tokens=20)
    logits = []
    for _ in range(8):
        logits.append(generator.get_logits().copy())
        generator.generate_next_token()
    before, prompt = list(generator.tokens), len(generator.tokens) - 8
    generator.rewind_to(prompt + 3)
    for expected in logits[3:]:
        np.testing.assert_array_equal(generator.get_logits(), expected)
        generator.generate_next_token()
    assert generator.tokens == before


def test_requests_side_by_side_do_not_meet(pipe: Any) -> None:
    alone = [pipe(prompt, max_tokens=10, temperature=0).tokens for prompt in PROMPTS]
    generators = [pipe.generator(prompt, temperature=0, max_tokens=10) for prompt in PROMPTS]
    for _ in range(10):
        for generator in generators:
            if not generator.is_done:
                generator.generate_next_token()
    assert [generator.new_tokens for generator in generators] == alone
    with ThreadPoolExecutor(3) as pool:
        many = list(pool.map(lambda text: pipe(text, max_tokens=10, temperature=0).tokens, PROMPTS * 2))
    assert many == alone * 2


def test_a_session_takes_its_cache_along(tmp_path: Path) -> None:
    kv = {"graph": "decoder", "ports": {"p": "q"}, "axis": 2, "tokens": "ids", "capacity": 64, "scope": "session"}
    path, said = counter(tmp_path / "x.genai", state={"kv": kv}), []
    for backend in ("onnxruntime", "openvino"):
        with genai_runner.load(path, backend) as loaded:
            session, other = loaded.session(), loaded.session()
            said.append([session(ids=[1], max_tokens=3).tokens, other(ids=[5], max_tokens=2).tokens])
            generator = loaded.generator(ids=[1], max_tokens=3)
            said[-1].append([session(ids=[0, 1], max_tokens=3).tokens, generator.get_logits().tolist()])
    assert said[0] == said[1]


def test_a_request_begins_empty_whatever_ran_before_it(path: Path) -> None:
    """In OpenVINO 2026.4 a reset variable keeps the length of another run, where attention is not fused."""
    with genai_runner.load(path, "openvino") as loaded:
        again = loaded.graph("decoder")
        for graph in (again, loaded.graph("decoder"), again, loaded.graph("decoder")):
            past: Any = EMPTY
            for count, held in ((2, 0), (1, 2), (3, 3)):
                past = graph.run(feeds([held] * count, past, held), ["q"], keep=["q"])["q"]
            np.testing.assert_array_equal(graph.array(past).ravel(), [0, 0, 2, 3, 3, 3])


def test_a_handle_costs_nothing_and_reads_as_its_array(path: Path) -> None:
    with genai_runner.load(path, "openvino") as loaded:
        graph = loaded.graph("decoder")
        first = graph.run(feeds([3, 4], EMPTY, 0), ["logits", "q"], keep=["q"])
        assert isinstance(first["q"], Held)
        np.testing.assert_array_equal(graph.array(first["q"]).ravel(), [3, 4])
        second = graph.run(feeds([5], first["q"], 2), ["q"])  # wanted, and not to be kept: a value
        np.testing.assert_array_equal(second["q"].ravel(), [3, 4, 5])
        assert second["q"].base is None


def test_a_handle_that_a_later_run_ended_is_refused(path: Path) -> None:
    with genai_runner.load(path, "openvino") as loaded:
        graph = loaded.graph("decoder")
        first = graph.run(feeds([3, 4], EMPTY, 0), ["q"], keep=["q"])["q"]
        second = graph.run(feeds([5], first, 2), ["q"], keep=["q"])["q"]
        for use in (lambda: graph.run(feeds([6], first, 2), ["q"]), lambda: graph.array(first)):
            with pytest.raises(BackendError, match="held no more"):
                use()
        np.testing.assert_array_equal(graph.array(second).ravel(), [3, 4, 5])
        other = graph.fork()
        moved = other.run(feeds([6], second, 3), ["q"])["q"]  # another request takes it over as it is
        np.testing.assert_array_equal(moved.ravel(), [3, 4, 5, 6])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_any_number_of_rows(dtype: type) -> None:
    text = COUNTER
    if dtype is np.float16:
        for old, new in (
            ("float[batch, 1", "float16[batch, 1"),
            ("new = Unsqueeze (three, last)", "wide = Unsqueeze (three, last) new = Cast <to = 10> (wide)"),
            ("held = ReduceSum <keepdims = 0> (q)", "r = Cast <to = 1> (q) held = ReduceSum <keepdims = 0> (r)"),
        ):
            text = text.replace(old, new)
    graph = BACKEND.load("g", model(text), {}, KEEP)
    for rows in (2, 1, 3):
        past: Any = np.zeros((rows, 1, 0, 1), dtype)
        for held in range(3):
            ids = np.arange(rows)[:, None] + held
            out = graph.run({"ids": ids, "mask": np.ones((rows, held + 1), np.int64), "p": past}, ["q"], keep=["q"])
            past = out["q"]
        got = graph.array(past)
        assert (got.dtype, got.shape) == (dtype, (rows, 1, 3, 1))
        np.testing.assert_array_equal(got[..., 0].reshape(rows, 3), np.arange(rows)[:, None] + np.arange(3))
        given = got[:, :, :2].copy()
        out = graph.run({"ids": np.full((rows, 1), 7), "mask": np.ones((rows, 3), np.int64), "p": given}, ["q"])
        np.testing.assert_array_equal(out["q"][:, 0, :, 0], np.concatenate([given[:, 0, :, 0], [[7]] * rows], axis=1))


# -- failures ---------------------------------------------------------------------------------------------------------

PRODUCT = "g (float[n,a] x, float[b,c] y) => (float[n,c] z) { z = MatMul(x, y) }"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_fails_says_so_and_spoils_no_other(threads: int) -> None:
    graph = BACKEND.load("g", model(PRODUCT), {}, LoadOptions(threads=threads))
    x, y, bad = np.ones((2, 3), np.float32), np.full((3, 2), 2, np.float32), np.ones((4, 2), np.float32)
    for _ in range(3):
        for request in (graph, graph.fork()):
            np.testing.assert_array_equal(request.run({"x": x, "y": y}, ["z"])["z"], np.full((2, 2), 6))
            with pytest.raises(RuntimeError, match="incompatible"):
                request.run({"x": x, "y": bad}, ["z"])


def test_what_was_held_when_another_request_failed_is_lost_and_said_to_be(path: Path) -> None:
    with genai_runner.load(path, "openvino") as loaded:
        one, other = loaded.graph("decoder"), loaded.graph("decoder")
        held = one.run(feeds([3, 4], EMPTY, 0), ["q"], keep=["q"])["q"]
        bad = {**feeds([1], EMPTY, 0), "p": np.zeros((2, 1, 3, 1), np.float32)}  # two rows, where the ids have one
        with pytest.raises(RuntimeError):
            other.run(bad, ["q"])
        with pytest.raises(BackendError, match="held no more"):
            one.run(feeds([5], held, 2), ["q"])
        np.testing.assert_array_equal(one.run(feeds([5], EMPTY, 0), ["q"])["q"].ravel(), [5])


def test_an_unknown_device_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"no device 'npu9' here\. It has auto, .*cpu"):
        genai_runner.load(SAMPLE, "openvino", device="npu9")


def test_an_unknown_device_option_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no device option 'cache_dir'\. Known: .*PERFORMANCE_HINT"):
        genai_runner.load(SAMPLE, "openvino", device_options={"cache_dir": "/"})
    genai_runner.load(SAMPLE, "openvino", device_options={"performance_hint": "THROUGHPUT"}).close()


# -- reading ----------------------------------------------------------------------------------------------------------


def test_weights_stay_where_they_are_mapped(tmp_path: Path) -> None:
    """Every constant of external data lies in the mapping itself, whatever its type."""
    types = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.INT8: 1, TensorProto.BFLOAT16: 2}
    (tmp_path / "w").write_bytes(bytes(range(256)) * 64)
    tensors, nodes, outputs = [], [], []
    for index, (kind, size) in enumerate(types.items()):
        tensor = TensorProto(name=f"w{index}", data_type=kind, dims=[64], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "w"), ("offset", 1024 * index), ("length", 64 * size)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        nodes.append(helper.make_node("Add", [f"x{index}", f"w{index}"], [f"y{index}"]))
        outputs.append(helper.make_tensor_value_info(f"y{index}", kind, [64]))
    inputs = [helper.make_tensor_value_info(f"x{index}", kind, [64]) for index, kind in enumerate(types)]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, tensors), ir_version=10)
    with (tmp_path / "w").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    read = models.read_model(ov.Core(), made.SerializeToString(), {"w": memoryview(mapped)})
    places = {
        node.get_friendly_name(): node.get_data().ctypes.data - start
        for node in read.model.get_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name() in {tensor.name for tensor in tensors}
    }
    assert places == {f"w{index}": 1024 * index for index in range(len(types))}


def test_defaults_of_inputs_can_be_fed() -> None:
    text = "g (float[n] x, float[1] y) => (float[n] z) <float[1] y = {2.0}> { z = Mul(x, y) }"
    graph = BACKEND.load("g", model(text), {}, LoadOptions(threads=2))
    x, y = np.array([1, 2], np.float32), np.array([5], np.float32)
    for fed, expected in (({}, [2, 4]), ({"y": y}, [5, 10]), ({}, [2, 4])):
        assert graph.run({"x": x, **fed}, ["z"])["z"].tolist() == expected


def test_both_of_numpy_s_types_of_64_bits() -> None:
    double = model("double (int64[N] x) => (int64[N] y) { y = Add (x, x) }")
    graph = BACKEND.load("double", double, {}, LoadOptions())
    for kind in (np.int64, np.longlong):
        assert graph.run({"x": np.array([1, 2], kind)}, ["y"])["y"].tolist() == [2, 4]


def test_functions_of_a_model_and_inputs_that_nothing_reads() -> None:
    text = """
g (float[n] x, float[n] idle, int64 number) => (float[n] z) { y = my.twice (x) z = Add(y, y) }
<domain: "my", opset_import: ["" : 23]> twice (a) => (b) { b = Add(a, a) }
"""
    header = '<ir_version: 10, opset_import: ["" : 23, "my" : 1]>\n'
    graph = BACKEND.load("g", model(text, header), {}, LoadOptions(threads=2))
    x = np.array([1, 2], np.float32)
    assert graph.run({"x": x, "idle": x, "number": np.array(4)}, ["z"])["z"].tolist() == [4, 8]
    with pytest.raises(BackendError, match="no input 'unknown'"):
        graph.run({"x": x, "unknown": x}, ["z"])


@pytest.mark.parametrize(("precision", "expected"), [("exact", "f32"), ("fast", None)])
def test_exact_is_float32_and_fast_the_engine_own_choice(precision: str, expected: str | None) -> None:
    graph: Any = BACKEND.load("g", model(COUNTER), {}, LoadOptions(threads=2, precision=precision, states=(GROWS,)))
    compiled = graph._engine._compiled
    default = ov.Core().compile_model(ov.Core().read_model(model(COUNTER)), "CPU")
    for name in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION"):
        assert compiled.get_property(name).to_string() == (expected or default.get_property(name).to_string())


def test_a_buffer_written_in_place_is_copied_from_the_output(tmp_path: Path) -> None:
    """A scatter buffer: the engine could write it before it has read all of it, as both are one array."""
    text = """
g (int64[1,n] ids, float[1,4] p, int64[1,n] at) => (float[1] s, float[1,4] q) {
    new = Cast <to = 1> (ids)
    q = ScatterElements <axis = 1> (p, at, new)
    all = Sub (q, p)
    s = ReduceSum <keepdims = 0> (all)
}
"""
    graph = BACKEND.load("g", model(text), {}, LoadOptions(threads=2, states=(StatePort("p", "q", "scatter", 1),)))
    held = np.zeros((1, 4), np.float32)
    for position, token in enumerate((5, 7, 9)):
        fed = {"ids": np.array([[token]]), "at": np.array([[position]]), "p": held}
        got = graph.run(fed, ["s", "q"], into={"q": held})
        assert got.keys() == {"s"}
        assert got["s"].ravel().tolist() == [token]
    assert held.tolist() == [[5, 7, 9, 0]]
