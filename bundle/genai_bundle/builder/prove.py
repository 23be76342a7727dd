# SPDX-License-Identifier: Apache-2.0
"""Prove a finished bundle before it gets its name: through the runner's own door, on every variant.

With measure_fast.py the only file of the builder that imports the runner.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from genai_bundle.builder.closeness import LoadedGraph
from genai_bundle.builder.parity import Array, Cache, Decoder, Golden, check_decoder
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import GenaiError, ProofError, SourceError, UsageError
from genai_bundle.manifest import Manifest
from genai_bundle.ports import match_ports
from genai_bundle.sanitize import MAX_OPSET, STANDARD
from genai_runner import load
from genai_runner.backends.base import LoadOptions, find_backend
from genai_runner.cores import available_cores
from genai_runner.pipeline import Pipeline
from genai_runner.verify import run_tests

PORTABLE = "portable"

_ALIGNED, _SMALL = 64, 1 << 10
"""Bytes: where an engine may use a weight in place, and below what size a tensor belongs into its graph."""

LARGE = 1 << 30
"""Bytes of float32 weights."""

_STEPS = 16
"""Cached steps that a proof has at least."""

_CHECKED = 96
"""Positions of the shared buffers in the proof: more than its tokens, so that a buffer's rest is seen to be ignored."""


def prove_tests(path: Path, backend: str | None = None) -> list[str]:
    """Run the bundle's golden vectors on the portable graphs and on every variant whose backend is installed here.

    Args:
        backend: run the portable graphs on this backend instead.

    Returns:
        The variants that were run.

    Raises:
        ProofError: names the vector, the output and the variant that gave another result.
    """
    proved = []
    for form in forms(_manifest(path), backend):
        if form.variant == PORTABLE and backend is None and _is_large(path, form.variant):
            continue  # a dozen tokens would take minutes; its logits were proved, and those decide the tokens
        if _on(path, form, _run_vectors) is not None:
            proved.append(form.variant)
    return proved


def _run_vectors(pipeline: Pipeline, variant: str) -> float:
    """The largest difference that a golden vector allows and has."""
    largest = 0.0
    for result in run_tests(pipeline):
        if not result.passed:
            where = f"test '{result.name}', output '{result.output}'"
            raise ProofError(f"the variant '{variant}' does not reproduce it: {result.detail}", where=where)
        largest = max(largest, result.difference or 0.0)
    return largest


def prove_decoder(
    path: Path,
    graph: str,
    goldens: Sequence[Golden],
    backend: str | None = None,
    turn: int | None = None,
    adapter: str | None = None,
) -> dict[str, float]:
    """Compare the logits of the decoder `graph` with the reference, in every way that `parity.check_decoder` knows.

    Args:
        backend: None for what a build proves, every form on its own backend; else the portable graph on this backend.
        turn: see `parity.check_decoder`.
        adapter: the one of the bundle's adapters that the reference has.

    Returns:
        The largest difference of a logit, by variant.

    Raises:
        ProofError: see `parity.check_decoder`; the variant is named.
    """

    def check(pipeline: Pipeline, variant: str) -> float:
        brief = variant == PORTABLE and backend is None and _is_large(path, variant)
        asked = _brief(goldens) if brief else goldens
        longest = max(len(golden.text) for golden in asked) + 1
        return check_decoder(decoder_of(pipeline, graph, variant, longest, adapter), asked, turn)

    return on_each(path, backend, check)


def provable(graphs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The forms that a proof here runs: the portable one, and each whose backend is installed.

    Args:
        graphs: the manifest's `graphs`.
    """
    found = [PORTABLE]
    for variant in (variant for entry in graphs.values() for variant in entry.get("variants", ())):
        try:
            find_backend(variant["when"]["backend"])
        except UsageError:
            continue
        found.append(variant["name"])
    return list(dict.fromkeys(found))


def source_graph(
    file: Path, model: onnx.ModelProto | None = None
) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """An ONNX file of a build's source, as it lies there: a function from all its inputs to all its outputs.

    Args:
        model: another form of the file's graph, whose weights lie where the file's do.

    Raises:
        SourceError: the engine cannot load or run it.
    """
    if model is None:
        model = onnx.load(file, load_external_data=False)
    else:
        model = onnx.ModelProto.FromString(model.SerializeToString())
    weights: dict[str, memoryview] = {}
    for tensor in model.graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if not entry:
            continue
        if (location := entry["location"]) not in weights:
            with (file.parent / location).open("rb") as opened:
                weights[location] = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        start = int(entry.get("offset") or 0)
        length = int(entry.get("length") or len(weights[location]) - start)
        if start % _ALIGNED or length < _SMALL:  # not where an engine may use it, or what shapes are worked out from
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = bytes(weights[location][start : start + length])
    outputs = [value.name for value in model.graph.output]
    newest = max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=0)
    engine = "onnxruntime" if newest <= MAX_OPSET else "reference"

    def fail(error: Exception) -> SourceError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return SourceError(f"{engine} cannot run the graph: {reason}", where=file.name)

    try:
        # Matrices that are dequantised as a whole are made anew for every run, rather than kept as so much float32.
        options = LoadOptions(threads=available_cores(), low_memory=_made_bytes(model) > LARGE)
        graph = find_backend(engine).load(file.stem, model.SerializeToString(), weights, options)
    except Exception as error:  # an engine may raise anything
        raise fail(error) from error

    def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        try:
            return graph.run(feeds, outputs)
        except Exception as error:
            raise fail(error) from error

    return run


def prove_graphs(
    path: Path,
    check: Callable[[Mapping[str, LoadedGraph]], float],
    backend: str | None = None,
    adapter: str | None = None,
) -> dict[str, float]:
    """Let `check` compare a bundle's graphs, given by name, with the reference, in every form as `prove_decoder` does.

    Returns:
        The largest difference by variant.

    Raises:
        ProofError: the check's own, with the variant named.
    """

    def run(pipeline: Pipeline, variant: str) -> float:
        return check({name: _graph(pipeline, name, variant, adapter) for name in pipeline.manifest.graphs})

    return on_each(path, backend, run)


def on_each(path: Path, backend: str | None, check: Callable[[Pipeline, str], float]) -> dict[str, float]:
    """What `check` finds on every form that can be run here, by variant; its ProofErrors name the variant."""
    found = {}
    for form in forms(_manifest(path), backend):
        try:
            difference = _on(path, form, check)
        except ProofError as error:
            where = f"variant '{form.variant}', {error.where}"
            raise ProofError(error.message, where=where, hint=error.hint) from error
        if difference is not None:
            found[form.variant] = difference
    return found


def _on(path: Path, form: Form, check: Callable[[Pipeline, str], float]) -> float | None:
    """What `check` finds on one form, None where its backend is not installed here.

    The pipeline is gone when this returns: two forms of a large model are never in memory at once.
    """
    pipeline = _load(path, form)
    if pipeline is None:
        return None
    with pipeline:
        return check(pipeline, form.variant)


def _graph(pipeline: Pipeline, name: str, variant: str, adapter: str | None) -> LoadedGraph:
    entry = pipeline.manifest.graphs[name]
    ports = pipeline.bundle.ports(next((one.file for one in entry.variants if one.name == variant), entry.file))
    loaded = pipeline.graph(name, adapter=adapter)

    def execute(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs = loaded.run(feeds, list(ports.outputs))
        return {port: loaded.array(tensor) for port, tensor in outputs.items()}

    return LoadedGraph({port.name: port.dims for port in ports.inputs.values()}, tuple(ports.outputs), execute)


def _manifest(path: Path) -> Manifest:
    with open_bundle(path) as bundle:
        return bundle.manifest


class Form(NamedTuple):
    """A bundle's graphs as one backend runs them."""

    variant: str
    backend: str
    device: str = "cpu"


def forms(manifest: Manifest, backend: str | None = None) -> list[Form]:
    """Every form of the bundle's graphs; with `backend`, the portable one on that."""
    if backend is not None:
        return [Form(PORTABLE, backend)]
    named = {
        variant.name: Form(variant.name, variant.when["backend"], variant.when.get("device", "cpu"))
        for graph in manifest.graphs.values()
        for variant in graph.variants
    }
    return [Form(PORTABLE, "onnxruntime"), *named.values()]


def _is_large(path: Path, variant: str) -> bool:
    """Whether an engine would take too much memory for a form of the bundle: such is proved with its weights in place.

    It copies float32 weights to pack them, and makes float32 of what is cast or dequantised before its use.
    """
    with open_bundle(path) as bundle:
        graphs = bundle.manifest.graphs.values()
        chosen = [next((one for one in graph.variants if one.name == variant), graph).file for graph in graphs]
        return any(_float_bytes(bundle.graph(file)) > LARGE for file in chosen)


def _brief(goldens: Sequence[Golden]) -> list[Golden]:
    """Enough to prove a form of which every run takes long: one text with 16 cached steps, another for the batch."""
    plain = [golden for golden in goldens if not golden.offset and golden.known == len(golden.ids)]
    return [_cut(golden, tokens) for golden, tokens in zip(plain, (_STEPS + 1, 2), strict=False)] or list(goldens)


def _cut(golden: Golden, count: int) -> Golden:
    """The golden with `count` new tokens."""
    length = len(golden.ids) + count - 1
    changes: dict[str, Any] = {
        "tokens": golden.tokens[:count],
        "logits": golden.logits[:length],
        "keys": tuple(keys[:, :length] for keys in golden.keys),
        "values": tuple(values[:, :length] for values in golden.values),
    }
    return replace(golden, **changes)  # type: ignore[type-var]


def _float_bytes(model: onnx.ModelProto) -> int:
    plain = [prod(one.dims) for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    return int(4 * sum(plain)) + _made_bytes(model)


def _made_bytes(model: onnx.ModelProto) -> int:
    """Of weights that are cast or dequantised to float32 as a whole."""
    made = {node.input[0] for node in model.graph.node if node.op_type in ("Cast", "DequantizeLinear")}
    float32 = onnx.TensorProto.FLOAT
    others = [one for one in model.graph.initializer if one.name in made and one.data_type != float32]
    return int(4 * sum(prod(one.dims) for one in others))


def _load(path: Path, form: Form) -> Pipeline | None:
    """The pipeline, or None where a variant's backend is not installed here. The portable form always runs."""
    large = _is_large(path, form.variant)
    try:
        return load(
            path, form.backend, device=form.device, variant=form.variant, precision="exact", low_memory=large,
            saved_prefixes=False,
        )  # fmt: skip
    except UsageError:
        if form.variant == PORTABLE:
            raise
        return None


def decoder_of(pipeline: Pipeline, graph: str, variant: str, longest: int, adapter: str | None = None) -> Decoder:
    """A graph of the bundle with its states, which are given room for `longest` tokens."""
    manifest = pipeline.manifest
    entry = manifest.graphs[graph]
    chosen = next((one for one in entry.variants if one.name == variant), None)
    ports = pipeline.bundle.ports(chosen.file if chosen else entry.file)
    caches, shared = [], False
    for name, state in manifest.state.items():
        if state.graph != graph:
            continue
        found = state.override(chosen.state.get(name, {}) if chosen else {})
        shared = shared or found.update == "shared"
        for past, present in match_ports(found.ports, ports).items():
            dims = tuple(dim if isinstance(dim, int) else 0 for dim in ports.inputs[past].dims)
            caches.append(Cache(past, present, dims, found.axis if found.update in ("append", "shared") else None))
    loaded = pipeline.graph(graph, adapter=adapter)

    def run(feeds: Mapping[str, Array], want: Sequence[str], into: Mapping[str, Array]) -> Mapping[str, Array]:
        try:
            outputs: Mapping[str, Array] = loaded.run(feeds, want, into=into)
        except GenaiError:
            raise
        except Exception as error:  # whatever the engine raises on a graph that does not fit itself
            reason = " ".join(str(error).split())
            raise ProofError(f"the graph cannot be run: {reason}", where="a run of it") from error
        return outputs

    capacity = max(_CHECKED, longest) if shared else None
    return Decoder(run, list(ports.inputs), caches, capacity, single=ports.inputs["input_ids"].dims[1] == 1)
