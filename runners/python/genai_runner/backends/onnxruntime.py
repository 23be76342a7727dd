# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime, on the CPU or by any of its execution providers. The only file that imports `onnxruntime`.

Weights are used in place: the session reads initializers straight from the bundle's mapping, so that a graph opens in
milliseconds and processes share its pages. By default matrices are then packed for speed, which makes one private copy;
the mapping's pages are handed back to the system afterwards.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from genai_bundle.errors import BackendError

from ..placement import graphs_of
from ..providers import BOOKKEEPING, CPU, PROVIDERS, Provider, devices_of, options_of, provider_of
from .base import Array, Graph, LoadOptions, Tensor

ACCURACY_LEVELS = {"exact": 1, "fast": 4}
"""Of MatMulNBits: float32 activations and sums; activations rounded to eight bits, block by block, at each product."""

SMALL = 1 << 14
"""Bytes of an input that is copied into a buffer which stays bound: binding costs more than that."""

COPIED = 1 << 22
"""Bytes of outputs that are copied out of arrays which stay bound. Beyond that the copy costs more than it saves."""

NOTHING: Mapping[str, Array] = {}


class OnnxRuntimeGraph:
    """A session and, for one request, its bindings: only what changes from run to run is bound anew."""

    def __init__(
        self, session: ort.InferenceSession, pinned: tuple[memoryview, ...], memory: tuple[str, int] = (CPU, 0)
    ) -> None:
        self._session = session
        self._memory = memory  # where values stay that are fed back
        # The session does not keep the mapping alive: a dropped view is a crash, not an exception.
        self._pinned = pinned
        self._binding = session.io_binding()
        self._bound: dict[str, Tensor] = {}
        self._held: dict[str, Array] = {}  # bound copies of inputs that are small and new in every run
        # What the last run was asked for, which a step asks for again; and what follows from it.
        self._asked: tuple[object, ...] = (None, None, None)
        self._names: list[str] = []  # outputs in the order of binding
        self._written: dict[str, Array] = {}  # those that are written in place
        self._fresh: list[tuple[str, int, bool]] = []  # the others: name, place, whether it is kept
        self._forms: list[tuple[str, tuple[int, ...], np.dtype[Any]]] = []  # of those that came as arrays
        self._steady: dict[str, Array] = {}  # what they are bound to, once their shapes have come twice

    def fork(self) -> Graph:
        return OnnxRuntimeGraph(self._session, self._pinned, self._memory)

    @property
    def operators(self) -> Mapping[str, int]:
        """How many operators run on which device."""
        devices = {provider.name: device for device, provider in PROVIDERS.items()}
        return dict(Counter(devices.get(name, name) for name, _ in _assigned(self._session)))

    def array(self, tensor: Tensor) -> Array:
        array: Array = tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
        return array

    def run(
        self,
        feeds: Mapping[str, Tensor],
        want: Collection[str],
        *,
        keep: Collection[str] = (),
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Tensor]:
        into = into or NOTHING
        bound = self._bound
        new = [
            name for name in feeds if bound.get(name) is not feeds[name] and self._bind_input(name, feeds[name], into)
        ]
        if new or not all(one is before for one, before in zip((want, keep, into), self._asked, strict=True)):
            self._asked, self._steady = (want, keep, into), {}
            self._arrange(want, keep, into)
        elif not self._steady:
            self._settle()
        if self._steady:
            try:
                self._session.run_with_iobinding(self._binding)
                return {name: array.copy() for name, array in self._steady.items()}
            except Exception:  # a shape follows from values, or it is the graph: then it fails again
                # Buffers in `into` get the new tokens' positions, so that writing them again changes nothing.
                self._steady = {}
        return self._run_unsettled()

    def _run_unsettled(self) -> dict[str, Tensor]:
        """Run with outputs that the engine allocates.

        One stays bound to its memory; bound again, the next run allocates anew and leaves the value handed out (it is
        the next run's past) untouched.
        """
        for name, _, kept in self._fresh:
            self._binding.bind_output(name, *(self._memory if kept else (CPU, 0)))
        self._session.run_with_iobinding(self._binding)
        # One by one out of the engine's own list: wrapping every buffer of a cache takes a tenth of a fast step.
        values = self._binding.get_outputs_as_ortvaluevector()
        given = ((name, kept, values[place]) for name, place, kept in self._fresh)
        outputs = {name: ort.OrtValue(value) if kept else value.numpy() for name, kept, value in given}
        self._forms = [(name, one.shape, one.dtype) for name, one in outputs.items() if isinstance(one, np.ndarray)]
        return outputs

    def _settle(self) -> None:
        """Inputs have the shapes of the last run, so outputs have too: bind these to arrays, once."""
        plain = len(self._forms) == len(self._fresh) and all(dtype.kind in "biuf" for _, _, dtype in self._forms)
        if plain and sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in self._forms) <= COPIED:
            self._steady = {name: np.empty(shape, dtype) for name, shape, dtype in self._forms}
            for name, array in self._steady.items():
                self._bind_output(name, array)

    def _bind_input(self, name: str, tensor: Tensor, into: Mapping[str, Array]) -> bool:
        """Let the next run read `tensor`; False where it only has other values than the last run's."""
        small = isinstance(tensor, np.ndarray) and tensor.nbytes <= SMALL and self._memory[0] == CPU
        if small and not any(tensor is array for array in into.values()):
            held = self._held.get(name)
            if held is not None and held.shape == tensor.shape:
                held[...] = tensor
                return False
            self._held[name] = held = np.array(tensor, order="C")
            self._binding.bind_cpu_input(name, held)
            self._bound.pop(name, None)
            return True
        self._held.pop(name, None)
        if isinstance(tensor, np.ndarray):
            self._binding.bind_cpu_input(name, np.require(tensor, requirements="C"))
            if not tensor.flags.c_contiguous:  # a copy was bound: later writes to the original would not be seen
                self._bound.pop(name, None)
                return True
        else:
            self._binding.bind_ortvalue_input(name, tensor)
        self._bound[name] = tensor
        return True

    def _arrange(self, want: Collection[str], keep: Collection[str], into: Mapping[str, Array]) -> None:
        """Bind what is written in place, and tell what the others are."""
        names = [*into, *(name for name in want if name not in into)]
        if names != self._names:
            self._binding.clear_binding_outputs()
            self._names, self._written = names, {}
        for name, array in into.items():
            if self._written.get(name) is not array:
                self._bind_output(name, array)
        self._written = dict(into)
        self._fresh = [(name, place, name in keep) for place, name in enumerate(names) if name not in into]

    def _bind_output(self, name: str, array: Array) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _at_level(model: bytes, level: int) -> bytes:
    """The model with this accuracy level on every MatMulNBits, whatever its maker has set there."""
    if b"MatMulNBits" not in model:
        return model
    proto = onnx.load_model_from_string(model)
    inside = (graph.node for graph in graphs_of(proto.graph))
    for node in (node for nodes in (*inside, *(function.node for function in proto.functions)) for node in nodes):
        if node.op_type == "MatMulNBits":
            others = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*others, onnx.helper.make_attribute("accuracy_level", level)])
    changed: bytes = proto.SerializeToString()
    return changed


class OnnxRuntimeBackend:
    name = "onnxruntime"
    version = ort.__version__

    def devices(self) -> list[str]:
        """The devices that the installed package was built for."""
        return devices_of(ort.get_available_providers())

    def load(self, graph: str, model: bytes, weights: Mapping[str, memoryview], options: LoadOptions) -> Graph:
        level = ACCURACY_LEVELS[options.precision]
        session_options = ort.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        session_options.inter_op_num_threads = 1
        session_options.log_severity_level = 3
        views = tuple(weights.values())
        if views:
            session_options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
            session_options.add_external_initializers_from_files_in_memory(
                list(weights), list(views), [view.nbytes for view in views]
            )
        # Packed copies come from the system, not from an arena that takes memory in powers of two and keeps it:
        # 500 instead of 850 MB for 400 MB of weights.
        session_options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        skipped = []
        # ONNX Runtime joins dequantisation and product into MatMulNBits where it can: at this level, then.
        session_options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
        if options.precision == "fast":
            session_options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "1")
        if options.low_memory:
            session_options.add_session_config_entry("session.disable_prepacking", "1")
            skipped = ["ConstantFolding"]  # it would make private copies of transposed weights
        session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        provider = provider_of(options.device, ort.get_available_providers())
        settings = options_of(options.device, provider, options.device_options, options.precision)
        session = ort.InferenceSession(
            _at_level(model, level),
            session_options,
            providers=[(provider.name, settings), *([] if options.device == CPU else [PROVIDERS[CPU].name])],
            disabled_optimizers=skipped,
            enable_fallback=0,  # else it prints a failure of the provider, and goes on without it
        )
        if options.device != CPU:
            _check_device(session, options, provider)
        return OnnxRuntimeGraph(session, views, (provider.memory, int(settings.get("device_id", 0))))


def _check_device(session: ort.InferenceSession, options: LoadOptions, provider: Provider) -> None:
    """The device runs the graph, and not the CPU in its place: ONNX Runtime itself goes on without it, with a warning.

    Its own switch against that (session.disable_cpu_ep_fallback) would also refuse the arithmetic of shapes, which
    providers leave to the CPU on purpose, so that hardly any decoder would pass.
    """
    if provider.name not in session.get_providers():
        hint = "Its libraries or drivers may be missing; ONNX Runtime says more on stderr"
        raise BackendError(f"{provider.name} could not be started", hint=hint)
    left = {op for name, op in _assigned(session) if name == PROVIDERS[CPU].name} - BOOKKEEPING
    if left and not options.cpu_fallback:
        listed = ", ".join(sorted(left))
        hint = "Allow it with --allow-cpu-fallback (cpu_fallback=True)"
        raise BackendError(f"{options.device} does not run these operators, the CPU would: {listed}", hint=hint)


def _assigned(session: ort.InferenceSession) -> Iterator[tuple[str, str]]:
    """(provider, operator) of every node, after ONNX Runtime's own rewriting."""
    for part in session.get_provider_graph_assignment_info():
        yield from ((part.ep_name, node.op_type) for node in part.get_nodes())


BACKEND = OnnxRuntimeBackend()
