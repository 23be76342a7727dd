# SPDX-License-Identifier: Apache-2.0
"""`backend="auto"`: every installed backend runs a little of the bundle once, and the fastest right one is taken.

What was found is kept in the user's cache folder, under a key of everything that may change it. Engines run in this
process: one that takes it down is not the choice of anybody.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from typing import Any

from genai_bundle import __version__
from genai_bundle.bundle import Bundle, open_bundle
from genai_bundle.errors import BackendError, GenaiError, UsageError
from genai_bundle.layout import is_weights
from genai_bundle.manifest import Generate, Manifest

from .backends.base import engine_names, find_backend
from .cache_folder import cache_folder
from .fitting import PORTABLE
from .pipeline import Pipeline
from .verify import golden_inputs, run_tests

REFERENCE = "reference"
SLOW = 64 << 20
"""Bytes of weights above which the reference evaluator would take minutes for a token."""

PROMPT, TOKENS, STEPS = 64, 64, 8
"""What a choice is made for, tokens of prompt and of answer; and how many of the answer are measured."""

Load = Callable[..., Pipeline]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """How a backend did with one form of a bundle's graphs. Times are in seconds, None where they were not taken.

    reason: why it was left out; "" for one that may be taken. prefill_s: a prompt of PROMPT tokens, or as many as the
    context holds, or one run of a bundle that generates nothing. step_s: each further token. difference: the largest
    of a golden vector.
    """

    backend: str
    variant: str
    reason: str = ""
    load_s: float | None = None
    prefill_s: float | None = None
    step_s: float | None = None
    difference: float | None = None
    chosen: bool = False

    @property
    def cost(self) -> float:
        """Seconds of what a choice is made for."""
        return inf if self.prefill_s is None else self.prefill_s + TOKENS * (self.step_s or 0.0)


def figures(
    path: str | Path,
    load: Load,
    *,
    backends: Sequence[str] | None = None,
    variant: str | None = None,
    refresh: bool = False,
    report: Report = lambda _: None,
    **options: Any,
) -> list[Figure]:
    """The figures of every form of the bundle on every backend, the chosen one marked; remembered ones if there are.

    load: genai_runner.load. backends: only these. variant: only this one. refresh: measure again. report: is told
    what is measured next. options: those of `load` (device, precision, threads ...).
    """
    names = list(backends) if backends is not None else engine_names()
    with open_bundle(path) as bundle:
        file = _file(bundle, names, variant, options)
        known = None if refresh or file is None else _read(file)
        if known is not None:
            return known
        found = list(_measure_all(bundle, load, names, variant, report, options))
    if variant is not None and all(one.variant != variant for one in found):
        raise UsageError(f"no backend that is installed has a variant {variant!r} of this bundle")
    right = [one for one in found if not one.reason]
    best = min(right, key=lambda one: one.cost, default=None)
    marked = [Figure(**{**asdict(one), "chosen": one is best}) for one in found]
    if file is not None and best is not None:
        _write(file, marked)
    return marked


def chosen(found: Sequence[Figure]) -> Figure:
    """The one that was taken. Raises BackendError where none is right."""
    for figure in found:
        if figure.chosen:
            return figure
    reasons = "; ".join(f"{one.backend}, {one.variant}: {one.reason}" for one in found)
    raise BackendError(f"no installed backend runs the bundle rightly: {reasons}")


def forms(manifest: Manifest, backend: str, device: str) -> list[str]:
    """What there is to run on a backend: the portable graphs, and each variant that is made for it and the device."""
    here = {"backend": backend, "device": device}
    made = (variant for graph in manifest.graphs.values() for variant in graph.variants)
    fitting = [one.name for one in made if all(here.get(key) == value for key, value in one.when.items())]
    return [PORTABLE, *dict.fromkeys(fitting)]


def _measure_all(
    bundle: Bundle, load: Load, names: Sequence[str], variant: str | None, report: Report, options: Mapping[str, Any]
) -> Iterator[Figure]:
    passed = False
    for name in sorted(names, key=lambda name: name == REFERENCE):  # the last: it is needed only if all others fail
        try:
            find_backend(name)
        except UsageError as error:
            yield Figure(name, PORTABLE, error.message)
            continue
        if name == REFERENCE and (reason := _needless(bundle, passed, alone=len(names) == 1)):
            yield Figure(name, PORTABLE, reason)
            continue
        for form in forms(bundle.manifest, name, options.get("device", "cpu")):
            if variant in (None, form):
                report(f"{name}, {form}")
                figure = _measure(bundle, load, name, form, options)
                passed = passed or not figure.reason
                yield figure


def _needless(bundle: Bundle, passed: bool, *, alone: bool) -> str:
    if passed and not alone:
        return "only where no other backend is right"
    large = sum(entry.size for path, entry in bundle.manifest.files.items() if is_weights(path)) > SLOW
    return "too slow for weights of this size" if large else ""


def _measure(bundle: Bundle, load: Load, backend: str, variant: str, options: Mapping[str, Any]) -> Figure:
    try:
        began = time.perf_counter()
        with load(bundle.path, backend, saved_prefixes=False, **{**options, "variant": variant}) as pipe:
            load_s = time.perf_counter() - began
            difference = _check(pipe, load, backend, {**options, "variant": variant})
            prefill_s, step_s = _times(pipe)
    except GenaiError as error:
        return Figure(backend, variant, str(error))
    return Figure(backend, variant, "", load_s, prefill_s, step_s, difference)


def _check(pipe: Pipeline, load: Load, backend: str, options: Mapping[str, Any]) -> float | None:
    """The largest difference of a golden vector. Raises BackendError where one is not met.

    Where the bundle has no bounds for fast arithmetic, the same graphs are checked with exact one.
    """
    fast = any(place.precision == "fast" for place in pipe.placements.values())
    if fast and any(test.fast is None for test in pipe.manifest.tests):
        with load(pipe.bundle.path, backend, saved_prefixes=False, **{**options, "precision": "exact"}) as exact:
            return _check(exact, load, backend, options)
    largest = None
    for result in run_tests(pipe):
        if not result.passed:
            raise BackendError(f"does not reproduce test {result.name!r}, output {result.output!r}: {result.detail}")
        if result.difference is not None:
            largest = max(largest or 0.0, result.difference)
    return largest


def _times(pipe: Pipeline) -> tuple[float, float | None]:
    """(prefill, step) in seconds; (run, None) of a bundle whose outermost steps generate nothing."""
    inputs = _inputs(pipe)
    if not any(isinstance(step, Generate) for step in pipe.manifest.steps):
        return min(_timed(lambda: pipe(**inputs)) for _ in range(3)), None
    asked = {**inputs, "max_tokens": 1}
    pipe.generator(**asked).get_logits()  # once without a clock: engines make ready what they need
    prefills = []
    for _ in range(2):
        decoder = pipe.generator(**asked)
        more = decoder.tokens * (PROMPT // len(decoder.tokens))
        with suppress(UsageError):  # the context is shorter
            decoder.append_tokens(more[: PROMPT - len(decoder.tokens)])
        prefills.append(_timed(decoder.get_logits))
    steps: list[float] = []
    with suppress(UsageError):
        for token in (decoder.tokens * STEPS)[:STEPS]:
            decoder.append_tokens([token])
            steps.append(_timed(decoder.get_logits))
    return min(prefills), median(steps) if steps else None


def _inputs(pipe: Pipeline) -> dict[str, Any]:
    """A request: that of the first golden vector, else a prompt. Raises UsageError where there is neither."""
    if pipe.manifest.tests:
        return golden_inputs(pipe, pipe.manifest.tests[0])
    name = pipe.prompt_input
    if name is not None and pipe.manifest.inputs[name].type == "text":
        return {name: "Once upon a time"}
    if all(not one.required for one in pipe.manifest.inputs.values()):
        return {}
    raise UsageError("the bundle has no golden vectors, so there is nothing to measure it with")


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# -- what is remembered ----------------------------------------------------------------------------------------------


def _file(bundle: Bundle, names: Sequence[str], variant: str | None, options: Mapping[str, Any]) -> Path | None:
    """Where the figures are kept, None where nothing can be, or a backend tells no version."""
    versions = {}
    for name in names:
        with suppress(UsageError):
            versions[name] = getattr(find_backend(name), "version", None)
    folder = cache_folder("choices")
    if folder is None or None in versions.values():
        return None
    key = {
        "bundle": bundle.id, "runner": __version__, "engines": versions, "names": sorted(names), "variant": variant,
        "machine": [platform.node(), platform.machine(), platform.processor()], **options,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return folder / f"{digest}.json"


def _read(file: Path) -> list[Figure] | None:
    try:
        return [Figure(**one) for one in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # not there, or cut off
        return None


def _write(file: Path, found: Sequence[Figure]) -> None:
    text = json.dumps([asdict(one) for one in found], indent=1)
    with suppress(OSError):
        with NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False, encoding="utf-8") as opened:
            opened.write(text)
        Path(opened.name).replace(file)
