# SPDX-License-Identifier: Apache-2.0
"""From a path to a pipeline: open and check the bundle, choose variants, load the graphs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from onnx import ModelProto

from genai_bundle.bundle import Bundle, open_bundle
from genai_bundle.errors import BackendError, GenaiError, UsageError
from genai_bundle.manifest import State, Variant
from genai_bundle.ports import Ports, match_ports

from . import choice
from .adapters import read_adapters
from .backends.base import Backend, LoadOptions, StatePort, find_backend
from .cores import available_cores
from .fitting import AUTO, HOST, PORTABLE, Choice, candidates, choose
from .packed_prefixes import packed_prefixes
from .pages import given_back
from .pipeline import Pipeline
from .placement import Placement, check_precision, precision_of
from .prefix_cache import PrefixCache
from .processor import processor
from .program import LoadedGraph, Program
from .saved_prefixes import SavedPrefixes
from .text import TextCodec
from .trace import Trace

EXACT = ("onnxruntime", "reference", "scripted")


def load(
    path: str | Path,
    backend: str | Backend = "onnxruntime",
    *,
    device: str = "cpu",
    device_options: Mapping[str, str] | None = None,
    cpu_fallback: bool = False,
    variant: str = AUTO,
    precision: str | None = None,
    threads: int | None = None,
    low_memory: bool = False,
    verify: bool = False,
    literal: bool = False,
    trace: Trace | None = None,
    prefix_cache: int = 0,
    saved_prefixes: bool = True,
) -> Pipeline:
    """Open a bundle (file or folder) and load its graphs.

    backend: a name (`onnxruntime`, `openvino`, `reference`), an object with the interface of backends/base.py, or
    "auto" for the fastest right one of those installed, see choice.py; `Pipeline.figures` then says why.
    device: a name that the backend knows; "cpu", and for onnxruntime those of providers.py where its package has them.
    device_options: settings of the device, from the backend's list. cpu_fallback: the device may leave operators that
    it lacks to the CPU.
    variant: "auto" takes a graph's first variant made for this backend and device, "portable" none, else its name.
    precision: "exact" for the graphs' own arithmetic, "fast" for the engine's reduced forms; None: "fast" for a graph
    whose weights are quantised, else "exact". `Pipeline.placements` says what each graph got.
    threads: None for all cores that this process may use. low_memory: see `LoadOptions`.
    verify: check the digests of all members first, weights too (reads the whole file).
    literal: execute `generate` as the loop that defines it; slow, for tests of runners.
    prefix_cache: bytes in which to keep what requests have computed, for others whose prompts begin alike.
    saved_prefixes: use what `genai-bundle prefill` has computed, in the bundle and for it, see saved_prefixes.py.
    trace: called with each `Event` of every request: what ran when, and for how long; see trace.py.

    Raises InvalidBundle before any engine sees a byte of a bundle that breaks a rule; UsageError for an unknown
    backend or variant; BackendError where an engine cannot load a graph.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}, but it takes 1 or more")
    check_precision(precision)
    began = time.perf_counter()
    settings: dict[str, Any] = {
        "device": device,
        "device_options": device_options,
        "cpu_fallback": cpu_fallback,
        "precision": precision,
        "threads": threads or available_cores(),
        "low_memory": low_memory,
    }
    if backend == AUTO:
        found = choice.figures(path, load, variant=None if variant == AUTO else variant, **settings)
        best = choice.chosen(found)
        rest: dict[str, Any] = {"verify": verify, "literal": literal, "trace": trace, "prefix_cache": prefix_cache}
        rest["saved_prefixes"] = saved_prefixes
        pipeline = load(path, best.backend, variant=best.variant, **rest, **settings)
        pipeline.figures = tuple(found)
        return pipeline
    bundle = open_bundle(path)
    try:
        if verify:
            bundle.verify()
        engine = find_backend(backend) if isinstance(backend, str) else backend
        options = LoadOptions(
            device=device,
            threads=threads or available_cores(),
            low_memory=low_memory,
            device_options={key: str(value) for key, value in (device_options or {}).items()},
            cpu_fallback=cpu_fallback,
        )
        graphs = _load_graphs(bundle, engine, variant, precision, options)
        program = Program(bundle.manifest, graphs, codec_of(bundle), literal, read_adapters(bundle), trace)
        prefixes = PrefixCache(prefix_cache) if prefix_cache else None
        program = replace(program, load_s=time.perf_counter() - began, prefixes=prefixes)
        if saved_prefixes and not literal:
            program = replace(program, saved=_saved(bundle, engine, graphs))
    except BaseException:
        bundle.close()
        raise
    return Pipeline(bundle, program, engine.name)


def _load_graphs(
    bundle: Bundle, engine: Backend, variant: str, precision: str | None, options: LoadOptions
) -> dict[str, LoadedGraph]:
    graphs = bundle.manifest.graphs
    named = {one.name for entry in graphs.values() for one in entry.variants}
    if variant not in (AUTO, PORTABLE) and variant not in named:
        known = ", ".join([AUTO, PORTABLE, *sorted(named)])
        raise UsageError(f"there is no variant {variant!r}", hint=f"This bundle has {known}")
    loaded = {}
    for name, entry in graphs.items():
        place, how, wanted = engine, options, precision
        if entry.place == "host":
            place = engine if engine.name in EXACT else find_backend(HOST)
            how, wanted = replace(options, device="cpu", device_options={}), "exact"
        variants = candidates(entry, variant, place.name, how.device)
        prepare = partial(_with_precision, wanted, how)
        loaded[name] = _load_graph(bundle, name, choose(bundle, name, variants, place, prepare))
    return loaded


def _with_precision(wanted: str | None, options: LoadOptions, model: ModelProto) -> LoadOptions:
    return replace(options, precision=precision_of(model, wanted))


def _saved(bundle: Bundle, engine: Backend, graphs: Mapping[str, LoadedGraph]) -> SavedPrefixes | None:
    """None where an engine tells no version: what it computed could not be told from what another one does."""
    places = {name: one.place for name, one in graphs.items()}
    engines = {place.backend: find_backend(place.backend) for place in places.values() if place.backend != engine.name}
    versions = {one.name: getattr(one, "version", None) for one in (engine, *engines.values())}
    if not all(versions.values()):
        return None
    keys = ("variant", "backend", "device", "precision")
    how = {name: {key: getattr(one, key) for key in keys} for name, one in places.items()}
    key = {"backend": engine.name, "engines": versions, "processor": processor(), "graphs": how}
    return SavedPrefixes({"bundle": bundle.base_id, **key}, packed_prefixes(bundle))


def _load_graph(bundle: Bundle, name: str, choice: Choice) -> LoadedGraph:
    variant, engine = choice.variant, choice.engine
    file = variant.file if variant else bundle.manifest.graphs[name].file
    model = bundle.graph(file)
    locations = {
        item.value for tensor in model.graph.initializer for item in tensor.external_data if item.key == "location"
    }
    weights: Mapping[str, memoryview] = {path: bundle.view(path) for path in sorted(locations)}
    states = _states(bundle, name, variant)
    options = replace(choice.options, states=_state_ports(states, bundle.ports(file)))
    # An engine that packs keeps its own copy of what is large.
    packing = nullcontext() if options.low_memory or not weights else given_back(bundle, weights)
    try:
        with packing:
            graph = engine.load(name, bundle.read(file), weights, options)
    except GenaiError:
        raise
    except Exception as error:  # an engine may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackendError(f"{engine.name} cannot load the graph: {reason}", where=file) from error
    place = Placement(
        file,
        variant.name if variant else PORTABLE,
        engine.name,
        options.device,
        getattr(graph, "precision", options.precision),
        getattr(graph, "operators", {}),
        choice.reason,
    )
    return LoadedGraph(name=name, place=place, ports=bundle.ports(file), graph=graph, states=states)


def _states(bundle: Bundle, graph: str, variant: Variant | None) -> dict[str, State]:
    changes = variant.state if variant else {}
    declared = bundle.manifest.state.items()
    return {name: spec.override(changes.get(name, {})) for name, spec in declared if spec.graph == graph}


def _state_ports(states: Mapping[str, State], ports: Ports) -> tuple[StatePort, ...]:
    return tuple(
        StatePort(past, present, spec.update, spec.axis)
        for spec in states.values()
        if spec.update != "read"
        for past, present in match_ports(spec.ports, ports).items()
    )


def codec_of(bundle: Bundle) -> TextCodec | None:
    """The bundle's tokenizer and chat template; None where it has none."""
    text = bundle.manifest.text
    if text is None:
        return None
    template = bundle.read(text.template).decode("utf-8") if text.template else None
    return TextCodec(bundle.read(text.tokenizer), template, text.eos, text.special, text.reply)
