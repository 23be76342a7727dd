# SPDX-License-Identifier: Apache-2.0
"""One test for each rule that spec/ gives to runners; the test's name holds the rule's id."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import genai_runner
from genai_bundle.errors import GenaiError, IntegrityError, InvalidBundle, UsageError
from genai_runner import philox
from genai_runner.backends.base import Graph, LoadOptions
from genai_runner.backends.scripted import ScriptedBackend
from runner.tiny import bundle, counter
from spec.recipes import LETTERS, build

DOUBLE = "double (float[N] x) => (float[N] y) { y = Add(x, x) }"
NUMBERS: dict[str, Any] = {
    "inputs": {"x": {"type": "f32", "dims": ["N"]}},
    "outputs": {"y": {"type": "f32", "dims": ["N"]}},
}
RUN = {"run": "double", "in": {"x": "x"}, "out": {"y": "twice"}}
EMIT = {"emit": {"y": "twice"}}


class Watched(ScriptedBackend):
    """Notes what it is asked to load; it claims to be no exact engine."""

    name = "watched"

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def load(self, graph: str, model: bytes, weights: Mapping[str, memoryview], options: LoadOptions) -> Graph:
        self.loaded.append(graph)
        return super().load(graph, model, weights, options)


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """A language model with text that continues the alphabet from `a` to `h`."""
    return build(LETTERS, tmp_path)


def weighted(folder: Path) -> Path:
    """A bundle with a shard: it adds 0, 1, 2, … 511 to its input."""
    values = ", ".join(f"{number}.0" for number in range(512))
    graph = f"add (float[512] x) => (float[512] y) <float[512] w = {{{values}}}> {{ y = Add(x, w) }}"
    return build(
        f"""
name: weighted
graphs: {{add: {{onnx: "{graph}"}}}}
inputs: {{x: "f32[512]"}}
outputs: {{y: "f32[512]"}}
steps:
- {{run: add, in: {{x: x}}, out: {{y: y}}}}
- emit: {{y: y}}
""",
        folder,
    )


@pytest.mark.parametrize("broken", ["container", "grammar", "graph"])
def test_r1_no_backend_sees_a_bundle_that_breaks_a_rule(broken: str, tmp_path: Path) -> None:
    steps = [RUN, {"emit": {"y": "twise"}}] if broken == "grammar" else [RUN, EMIT]
    text = '<ir_version: 10, opset_import: ["" : 23, "own" : 1]> d (float[N] x) => (float[N] y) { y = own.Code(x) }'
    graph = onnx.parser.parse_model(text).SerializeToString() if broken == "graph" else DOUBLE
    path = bundle(tmp_path / "x.genai", {"double": graph}, {**NUMBERS, "steps": steps})
    if broken == "container":
        path.write_bytes(path.read_bytes() + b"\0")
    backend = Watched()
    with pytest.raises(InvalidBundle) as caught:
        genai_runner.load(path, backend=backend)
    assert caught.value.rule in {"container": {"C4"}, "grammar": {"P1"}, "graph": {"G5"}}[broken]
    assert backend.loaded == []


def test_r2_the_digests_of_shards_are_checked_when_asked_for(tmp_path: Path) -> None:
    path = weighted(tmp_path)
    with genai_runner.load(path, verify=True) as pipe:
        shard = pipe.bundle.members["weights/add-00.bin"]
    data = bytearray(path.read_bytes())
    data[shard.offset + 7] ^= 1
    changed = tmp_path / "changed.genai"
    changed.write_bytes(data)
    genai_runner.load(changed).close()
    with pytest.raises(IntegrityError) as caught:
        genai_runner.load(changed, verify=True)
    assert caught.value.rule in {"I2", "I3"}


@pytest.mark.parametrize(
    "given",
    [{}, {"x": [1.0], "temprature": 1}, {"x": "text"}, {"x": [[1.0]]}, {"x": [1.0], "top_p": 2}, {"x": [1.0], "z": 1}],
    ids=["missing", "misspelt", "type", "dims", "range", "unknown"],
)
def test_r3_a_request_that_does_not_fit_is_refused_before_the_first_step(given: dict[str, Any], tmp_path: Path) -> None:
    path = bundle(tmp_path / "x.genai", {"double": DOUBLE}, {**NUMBERS, "steps": [RUN, EMIT]})
    backend = ScriptedBackend()
    with genai_runner.load(path, backend=backend) as pipe, pytest.raises(UsageError):
        pipe(**given)
    assert backend.calls == []


def test_r4_options_come_from_the_request_the_manifest_or_the_defaults(tmp_path: Path) -> None:
    numbers = {
        "temperature": "f32",
        "top_p": "f32",
        "min_p": "f32",
        "typical_p": "f32",
        "repetition_penalty": "f32",
        "frequency_penalty": "f32",
        "presence_penalty": "f32",
        "top_k": "i64",
        "no_repeat_ngram_size": "i64",
        "min_tokens": "i64",
        "seed": "i64",
    }
    manifest = {
        "outputs": {f"the_{name}": {"type": kind} for name, kind in numbers.items()},
        "steps": [{"emit": {f"the_{name}": name for name in numbers}}],
        "generation": {"top_k": 40, "seed": 7, "presence_penalty": -0.5, "min_tokens": 3},
    }
    with genai_runner.load(bundle(tmp_path / "x.genai", {}, manifest)) as pipe:
        outputs = pipe(seed=9).outputs
    expected = dict.fromkeys(numbers, 0) | {"top_p": 1, "typical_p": 1, "repetition_penalty": 1}
    expected |= {"top_k": 40, "seed": 9, "presence_penalty": -0.5, "min_tokens": 3}
    assert {name: float(outputs[f"the_{name}"]) for name in expected} == expected


def test_r5_random_numbers_are_philox_and_no_two_draws_are_the_same(tmp_path: Path) -> None:
    draw = {"run": "random.normal@1", "with": {"shape": [1, 4]}, "out": {"y": "noise"}}
    manifest = {
        "outputs": {"y": {"type": "f32", "dims": ["T*", 4]}},
        "steps": [{"loop": {"max": 2, "do": [draw, {"emit": {"y": "noise"}}]}}] * 2,
    }
    with genai_runner.load(bundle(tmp_path / "x.genai", {}, manifest)) as pipe:
        drawn = pipe(seed=5).outputs["y"]
        np.testing.assert_array_equal(drawn, pipe(seed=5).outputs["y"])
        assert not np.array_equal(drawn, pipe(seed=6).outputs["y"])
    expected = [philox.normal(5, (1, 4), step=step, stream=1) for step in range(4)]
    np.testing.assert_array_equal(drawn, np.concatenate(expected))


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0, "seed": 3}, {"temperature": 1.0, "repetition_penalty": 5.0}]
)
def test_r6_generate_gives_what_its_expansion_gives(options: dict[str, Any], tmp_path: Path) -> None:
    path = counter(tmp_path / "counter.genai")
    results = []
    for literal in (False, True):
        with genai_runner.load(path, literal=literal) as pipe:
            result = pipe(ids=[[1, 2, 3]], max_tokens=20, **options)
            results.append((result.tokens, result.finish_reason, result.outputs["tokens"].tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("literal", [False, True])
def test_r6_text_that_does_not_grow_is_set_once_and_whole(literal: bool, tmp_path: Path) -> None:
    path = build(LETTERS.replace('text: "text*"', "text: text"), tmp_path)
    with genai_runner.load(path, literal=literal) as pipe:
        assert pipe("a b", max_tokens=3).outputs["text"] == "c d e"


@pytest.mark.parametrize("stop", [[], ["e f"], ["d", "h"]])
def test_r7_streamed_pieces_joined_are_the_whole(stop: list[str], letters: Path) -> None:
    with genai_runner.load(letters) as pipe:
        whole = pipe("a b", max_tokens=6, stop=stop)
        assert "".join(pipe.stream("a b", max_tokens=6, stop=stop)) == whole.outputs["text"] == whole.text
        pieces = list(pipe.stream("a b", max_tokens=6, stop=stop, output="tokens"))
    assert np.concatenate(pieces, axis=1).tolist() == whole.outputs["tokens"].tolist()


def test_r8_text_is_cut_before_a_stop_string_and_tokens_are_not(letters: Path) -> None:
    with genai_runner.load(letters) as pipe:
        result = pipe("a b", max_tokens=6, stop=["e"])
    assert (result.text, result.tokens, result.finish_reason) == ("c d ", [10, 11, 12], "stop")


@pytest.mark.parametrize("scope", ["run", "session"])
def test_r9_states_are_empty_at_the_start_of_what_they_belong_to(scope: str, tmp_path: Path) -> None:
    graph = (
        "sum (float[1] x, float[1] past) => (float[1] y, float[1] present) { y = Add(x, past) present = Identity(y) }"
    )
    manifest = {
        "inputs": {"x": {"type": "f32", "dims": [1]}},
        "outputs": {"y": {"type": "f32", "dims": [1]}},
        "state": {"s": {"graph": "sum", "ports": {"past": "present"}, "update": "replace", "scope": scope}},
        "steps": [{"run": "sum", "in": {"x": "x"}, "out": {"y": "y"}}, {"emit": {"y": "y"}}],
    }
    with genai_runner.load(bundle(tmp_path / "x.genai", {"sum": graph}, manifest)) as pipe:
        session, other = pipe.session(), pipe.session()
        assert [float(call(x=[2]).outputs["y"][0]) for call in (pipe, pipe, session, session, other)] == (
            [2, 2, 2, 4, 2] if scope == "session" else [2] * 5
        )


def test_r10_a_variant_that_is_not_there_or_not_for_this_backend_is_refused(tmp_path: Path) -> None:
    entry = {
        "file": "double.onnx",
        "variants": [{"name": "v", "when": {"backend": "reference"}, "file": "double.onnx"}],
    }
    path = bundle(
        tmp_path / "x.genai", {"double": DOUBLE}, {**NUMBERS, "steps": [RUN, EMIT], "graphs": {"double": entry}}
    )
    genai_runner.load(path, backend="reference", variant="v").close()
    genai_runner.load(path, backend="onnxruntime", variant="portable").close()
    for backend, variant in (("onnxruntime", "v"), ("reference", "w")):
        with pytest.raises(UsageError, match=f"variant '{variant}'"):
            genai_runner.load(path, backend=backend, variant=variant)


def test_r11_host_graphs_run_on_an_exact_engine(tmp_path: Path) -> None:
    entry = {"file": "double.onnx", "place": "host"}
    path = bundle(
        tmp_path / "x.genai", {"double": DOUBLE}, {**NUMBERS, "steps": [RUN, EMIT], "graphs": {"double": entry}}
    )
    backend = Watched()
    with genai_runner.load(path, backend=backend) as pipe:
        assert pipe(x=[1.5, 2]).outputs["y"].tolist() == [3, 4]
    assert backend.loaded == []


def test_r12_weights_stay_mapped_while_a_backend_may_read_them(tmp_path: Path) -> None:
    pipe = genai_runner.load(weighted(tmp_path), low_memory=True)
    graph = pipe.graph("add")
    pipe.close()
    del pipe
    gc.collect()
    outputs = graph.run({"x": np.zeros(512, np.float32)}, ["y"])
    np.testing.assert_array_equal(outputs["y"], np.arange(512))


def test_r13_the_runners_own_bound_shows_as_length(tmp_path: Path) -> None:
    state = {"kv": {"graph": "decoder", "ports": {"p": "q"}, "axis": 2, "tokens": "ids"}}
    with genai_runner.load(counter(tmp_path / "x.genai", state=state)) as pipe:
        result = pipe(ids=[[1]])
    assert (result.finish_reason, len(result.tokens)) == ("length", 256)


EVENTS = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.remove",
    "os.rename",
)
_seen: list[str] = []
_watching = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and (event in EVENTS or (event == "open" and set(str(arguments[1] or "")) & set("wax+"))):
        _seen.append(f"{event} {arguments[:2]}")


@contextmanager
def audited() -> Iterator[list[str]]:
    """What reaches outside of the process meanwhile. An audit hook cannot be taken back, so it is switched off."""
    global _watching
    if _audit not in vars(audited).setdefault("hooks", []):
        sys.addaudithook(_audit)
        vars(audited)["hooks"].append(_audit)
    _seen.clear()
    _watching = True
    try:
        yield _seen
    finally:
        _watching = False


def test_r14_running_opens_no_connection_and_writes_no_file(letters: Path) -> None:
    with audited() as seen, genai_runner.load(letters) as pipe:
        pipe(messages=[{"role": "user", "content": "a b"}], max_tokens=4)
    assert seen == []


@pytest.mark.parametrize("expression", ["''.__class__.__mro__", "messages.append(1)", "cycler.__init__.__globals__"])
def test_r15_a_template_reaches_nothing(expression: str, tmp_path: Path) -> None:
    path = build(LETTERS, tmp_path, template="{{ " + expression + " }}")
    with genai_runner.load(path) as pipe, pytest.raises(GenaiError, match="template"):
        pipe(messages=[{"role": "user", "content": "a"}])
