# SPDX-License-Identifier: Apache-2.0
"""Devices of ONNX Runtime: which there are, what they take, and that none is left silently."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

import genai_runner
from genai_bundle.errors import BackendError, UsageError
from genai_runner.backends import onnxruntime as backend
from genai_runner.providers import PROVIDERS
from runner.tiny import bundle, counter

CUDA, HOST = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return counter(tmp_path / "counter.genai")


class Binding:
    """Records where outputs are bound, and binds them on the CPU."""

    def __init__(self, binding: Any, bound: list[tuple[str, str, int]]) -> None:
        self._binding, self._bound = binding, bound

    def bind_output(self, name: str, device: str = "cpu", number: int = 0, *given: Any) -> None:
        self._bound.append((name, device, number))
        self._binding.bind_output(name, "cpu", 0, *given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)


class Machine:
    """ONNX Runtime as it is where a GPU is: sessions say that it runs the graph, and the CPU does."""

    def __init__(self) -> None:
        self.started, self.on_cpu = True, {"Shape"}
        self.providers: list[Any] = []
        self.bound: list[tuple[str, str, int]] = []

    def session(self, model: bytes, options: Any, *, providers: list[Any], **given: Any) -> Any:
        self.providers = providers
        assert given["enable_fallback"] == 0
        real = onnxruntime.InferenceSession(model, options, providers=[HOST])
        nodes = [node for part in real.get_provider_graph_assignment_info() for node in part.get_nodes()]
        return SimpleNamespace(
            get_providers=lambda: [CUDA, HOST] if self.started else [HOST],
            get_provider_graph_assignment_info=lambda: [
                SimpleNamespace(ep_name=HOST, get_nodes=lambda: [SimpleNamespace(op_type=op) for op in self.on_cpu]),
                SimpleNamespace(ep_name=CUDA, get_nodes=lambda: nodes),
            ],
            io_binding=lambda: Binding(real.io_binding(), self.bound),
            run_with_iobinding=lambda binding: real.run_with_iobinding(binding._binding),
        )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    fake = SimpleNamespace(
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=made.session,
        get_available_providers=lambda: [CUDA, HOST],
        OrtValue=onnxruntime.OrtValue,
    )
    monkeypatch.setattr(backend, "ort", fake)
    return made


def test_every_device_is_a_provider_that_onnxruntime_knows_or_knew() -> None:
    names = {provider.name for provider in PROVIDERS.values()}
    assert names - {"ROCMExecutionProvider"} <= set(onnxruntime.get_all_providers())
    assert "AzureExecutionProvider" not in names


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "no 'cuda', only: cpu.*pip install onnxruntime-gpu"),
        ("dml", "no 'dml'.*pip install onnxruntime-directml"),
        ("xnnpack", "no 'xnnpack'.*builds for the platforms"),
        ("azure", "no device 'azure'.*installed: cpu"),
    ],
)
def test_r22_a_device_that_is_not_there_is_refused(device: str, message: str, path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        genai_runner.load(path, device=device)


@pytest.mark.parametrize("name", ["reference"])
def test_an_engine_without_devices_says_so(name: str, path: Path) -> None:
    with pytest.raises(UsageError, match="runs on the cpu"):
        genai_runner.load(path, name, device="cuda")


def test_r22_a_graph_runs_where_it_was_asked_to_and_says_so(machine: Machine, path: Path) -> None:
    with genai_runner.load(path, device="cuda", device_options={"device_id": 1}, precision="exact") as pipe:
        result = pipe([1], max_tokens=3)
    assert result.tokens == [2, 3, 4]
    place = result.stats.graphs["decoder"]
    assert (place.device, place.operators["cpu"]) == ("cuda", 1)
    assert place.operators["cuda"] > 5
    [(name, options), host] = machine.providers
    assert (name, host) == (CUDA, HOST)
    assert options["device_id"] == "1"
    assert options["use_tf32"] == "0"


def test_states_stay_on_the_device_and_results_come_back(machine: Machine, path: Path) -> None:
    with genai_runner.load(path, device="cuda", device_options={"device_id": 1}) as pipe:
        pipe([1], max_tokens=2)
    assert set(machine.bound) == {("logits", "cpu", 0), ("q", "cuda", 1)}


@pytest.mark.parametrize("key", ["user_compute_stream", "gpu_external_alloc", "use_tf32", "device"])
def test_r23_options_come_from_a_list(key: str, machine: Machine, path: Path) -> None:
    with pytest.raises(UsageError, match=key):
        genai_runner.load(path, device="cuda", device_options={key: "1"})
    with pytest.raises(UsageError, match="'cpu' takes no option 'device_id'"):
        genai_runner.load(path, device_options={"device_id": "1"})


def test_r23_no_provider_has_an_option_that_writes_or_loads() -> None:
    words = {"path", "dir", "directory", "file", "library", "lib", "cache", "dump", "alloc", "address", "ptr", "paths"}
    options = {option for provider in PROVIDERS.values() for option in provider.options}
    assert len(options) > 40
    assert not [option for option in options if words & set(option.lower().split("_"))]


def test_a_provider_that_does_not_start_is_an_error(machine: Machine, path: Path) -> None:
    machine.started = False
    with pytest.raises(BackendError, match="CUDAExecutionProvider could not be started"):
        genai_runner.load(path, device="cuda")


def test_r22_operators_left_to_the_cpu_are_an_error_unless_allowed(machine: Machine, path: Path) -> None:
    machine.on_cpu = {"Shape", "MatMul", "Softmax"}
    with pytest.raises(BackendError, match="does not run these operators, the CPU would: MatMul, Softmax"):
        genai_runner.load(path, device="cuda")
    with genai_runner.load(path, device="cuda", cpu_fallback=True) as pipe:
        assert pipe.placements["decoder"].operators["cpu"] == 3


def test_host_graphs_stay_on_the_cpu(machine: Machine, tmp_path: Path) -> None:
    vector = {"type": "f32", "dims": ["N"]}
    manifest = {
        "graphs": {"double": {"file": "double.onnx", "place": "host"}},
        "inputs": {"x": vector},
        "outputs": {"y": vector},
        "steps": [{"run": "double", "in": {"x": "x"}, "out": {"y": "y"}}, {"emit": {"y": "y"}}],
    }
    graphs: dict[str, str | bytes] = {"double": "double (float[N] x) => (float[N] y) { y = Add(x, x) }"}
    path = bundle(tmp_path / "x.genai", graphs, manifest)
    with genai_runner.load(path, device="cuda", precision="fast") as pipe:
        place = pipe.placements["double"]
    assert (place.device, place.precision) == ("cpu", "exact")
