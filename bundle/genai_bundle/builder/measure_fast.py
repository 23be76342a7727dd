# SPDX-License-Identifier: Apache-2.0
"""Measure a finished bundle's fast arithmetic, on every variant that is run so by default.

What is found is told and decides nothing: a mixture of experts takes another expert for a small difference, and that is
no fault of the graph, whose exact arithmetic was proved. `verify --precision fast` then says that the bound is not met.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genai_bundle.builder.parity import Array
from genai_bundle.builder.prove import PORTABLE, Form, forms
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import UsageError
from genai_runner import load
from genai_runner.verify import golden_scores, score_gap


def measure_fast(path: Path) -> dict[str, str]:
    """Run the bundle's golden vectors in fast arithmetic on each variant with quantised weights whose engine is here.

    The default graphs are left out: what an engine reduces lies in its own operators.

    Returns:
        The largest difference from exact arithmetic, in words by a title with the variant.
    """
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
    figures: dict[str, str] = {}
    if all(test.fast is None for test in manifest.tests):
        return figures
    for form in forms(manifest):
        if form.variant == PORTABLE:
            continue
        fast = _run(path, form, None)
        if fast and (exact := _run(path, form, "exact")) is not None:
            gap = max((score_gap(*pair) for pair in zip(fast, exact, strict=True)), default=0.0)
            bound = min(test.fast for test in manifest.tests if test.fast is not None)
            beyond = "" if gap <= bound else ": run it with --precision exact"
            text = f"a score differs by {gap:.1e}, allowed are {bound:g}{beyond}"
            figures[f"fast arithmetic, {form.variant}"] = text
    return figures


def _run(path: Path, form: Form, precision: str | None) -> Sequence[Array] | None:
    """The scores of all expected ids' places; None where the engine is missing, or the weights are not quantised."""
    try:
        pipeline = load(
            path, form.backend, device=form.device, variant=form.variant, precision=precision, saved_prefixes=False
        )
    except UsageError:
        return None
    with pipeline:
        if precision is None and all(place.precision == "exact" for place in pipeline.placements.values()):
            return None
        tests = [test for test in pipeline.manifest.tests if test.compare == "tokens" and test.fast is not None]
        return [scores for test in tests for scores in golden_scores(pipeline, test)]
