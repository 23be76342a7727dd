# SPDX-License-Identifier: Apache-2.0
"""Where a graph runs: as the user asks, unless the engine is known to compute it wrongly or to lack an operator of it.

Then another variant is taken where the user leaves the choice, or the exact CPU engine for a graph that no state and
no repetition needs near the others; else the bundle is refused (spec/runner.md, R24 and R25).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from genai_bundle.bundle import Bundle
from genai_bundle.errors import BackendError, UsageError
from genai_bundle.manifest import Generate, GraphEntry, If, Loop, Manifest, Run, Step, Variant

from .backends.base import Backend, LoadOptions, find_backend
from .probe import Finding, unfit
from .probe.table import version_of

PORTABLE, AUTO = "portable", "auto"
HOST = "onnxruntime"
"""The exact CPU engine: of `place: host` graphs too, unless the backend is exact itself."""

Prepare = Callable[[onnx.ModelProto], LoadOptions]
"""The options for one graph: its precision depends on what it holds."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs of a graph, and on which engine. `reason`: why not what was asked for first; empty if it is."""

    variant: Variant | None
    engine: Backend
    options: LoadOptions
    reason: str = ""


def candidates(entry: GraphEntry, wanted: str, backend: str, device: str) -> list[Variant | None]:
    """What may run of a graph, the best first; None is the default graph. UsageError for another backend's variant."""
    here = {"backend": backend, "device": device}
    found: list[Variant | None] = []
    for variant in entry.variants:
        fits = all(here.get(key) == value for key, value in variant.when.items())
        if fits and wanted in (AUTO, variant.name):
            found.append(variant)
        elif wanted == variant.name and not found:
            made = ", ".join(f"{key} {value}" for key, value in variant.when.items())
            raise UsageError(f"variant {wanted!r} is made for {made}, not for {backend} on {device}")
    return found if found and wanted != AUTO else [*found, None]


def choose(
    bundle: Bundle,
    name: str,
    variants: Sequence[Variant | None],
    engine: Backend,
    prepare: Prepare,
) -> Choice:
    """The first of `variants` (None: the default graph) that `engine` computes rightly, as far as is known.

    Raises BackendError where nothing fits: it names the first variant's first fault.
    """
    entry = bundle.manifest.graphs[name]
    first: tuple[str, Finding] | None = None
    for variant in variants:
        file, options, findings = _examine(bundle, entry, variant, engine, prepare)
        if not findings:
            return Choice(variant, engine, options, f"{first[0]}: {first[1]}" if first else "")
        first = first or (file, findings[0])
    assert first is not None
    file, finding = first
    if name not in set(_bound_graphs(bundle.manifest)):
        other = find_backend(HOST)
        _, options, findings = _examine(bundle, entry, None, other, lambda model: _exact(prepare(model)))
        if not findings:
            return Choice(None, other, options, f"{engine.name} {_version(engine)}: {finding}")
    hint = f"Choose another backend, or build the bundle with a variant for {engine.name} that does without"
    raise BackendError(f"{finding} by {engine.name} {_version(engine)} as installed here", where=file, hint=hint)


def _examine(
    bundle: Bundle, entry: GraphEntry, variant: Variant | None, engine: Backend, prepare: Prepare
) -> tuple[str, LoadOptions, list[Finding]]:
    file = variant.file if variant else entry.file
    model = bundle.graph(file)
    options = prepare(model)
    return file, options, unfit(model, engine, options)


def _exact(options: LoadOptions) -> LoadOptions:
    return replace(options, device="cpu", device_options={}, precision="exact")


def _version(engine: Backend) -> str:
    return version_of(engine) or "of unknown version"


def _bound_graphs(manifest: Manifest) -> Iterator[str]:
    """Graphs that have a state, or that a loop or `generate` runs: elsewhere, each of their runs would be slow."""
    yield from (state.graph for state in manifest.state.values())
    yield from _repeated(manifest.steps, inside=False)


def _repeated(steps: Sequence[Step], *, inside: bool) -> Iterator[str]:
    for step in steps:
        if isinstance(step, Run) and inside:
            yield step.target
        elif isinstance(step, Generate | Loop):
            draft = step.draft.do if isinstance(step, Generate) and step.draft else ()
            yield from _repeated((*step.do, *draft), inside=True)
        elif isinstance(step, If):
            yield from _repeated((*step.then, *step.orelse), inside=inside)
