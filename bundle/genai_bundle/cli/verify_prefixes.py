# SPDX-License-Identifier: Apache-2.0
"""The part of ``verify`` that computes a bundle's saved prefixes again, each as it says that it was computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genai_bundle.errors import BackendError, GenaiError, VerificationError

if TYPE_CHECKING:
    from genai_bundle.bundle import Bundle
    from genai_runner.pipeline import Pipeline


class Verdict(NamedTuple):
    """On one prefix. exit_code: 0 where it is right, None where it could not be computed here."""

    name: str
    backend: str
    variant: str
    difference: float | None
    detail: str
    exit_code: int | None


def check_prefixes(file: Path, bundle: Bundle, backends: Collection[str]) -> Iterator[Verdict]:
    """Compute each prefix again, if it is of one of these backends, on the same kind of processor."""
    from genai_runner.processor import processor

    for name, entry in bundle.manifest.prefixes.items():
        computed, variant = entry.computed, _variant(entry.computed)
        backend = computed["backend"]
        if backend not in backends:
            yield Verdict(name, backend, variant, None, f"--backend {backend} would compute it", None)
        elif computed["processor"] != processor():
            detail = f"of {computed['processor']!r}, this is {processor()!r}"
            yield Verdict(name, backend, variant, None, detail, None)
        else:
            yield _compare(file, name, computed, variant, entry.of)


def _compare(file: Path, name: str, computed: Mapping[str, Any], variant: str, of: Mapping[str, Any]) -> Verdict:
    import genai_runner
    from genai_bundle.cli.console import phases

    main = [one for one in computed["graphs"].values() if one["backend"] == computed["backend"]]
    precisions = {one["precision"] for one in main}
    how: dict[str, Any] = {
        "device": next((one["device"] for one in main if one["device"] != "cpu"), "cpu"),
        "precision": precisions.pop() if len(precisions) == 1 else None,
    }
    try:
        with (
            phases(f"the prefix {name} on {computed['backend']}, {variant}"),
            genai_runner.load(file, computed["backend"], variant=variant, **how) as pipe,
        ):
            difference, detail, code = _check(pipe, name, of)
    except GenaiError as error:
        return Verdict(name, computed["backend"], variant, None, str(error), BackendError.exit_code)
    return Verdict(name, computed["backend"], variant, difference, detail, code)


def _check(pipe: Pipeline, name: str, of: Mapping[str, Any]) -> tuple[float | None, str, int | None]:
    from genai_runner.prefill import check, key_of

    saved = key_of(pipe)
    prefix = next(one for one in saved.packed if one.id == name)
    if prefix.key != saved.key:
        other = next(key for key in saved.key if saved.key[key] != prefix.key.get(key))
        return None, f"computed with other {other}: {prefix.key.get(other)}", None
    difference, wrong = check(pipe, prefix, of)
    text = f"{len(prefix.ids)} ids, their states computed again"
    return difference, wrong or text, VerificationError.exit_code if wrong else 0


def _variant(computed: Mapping[str, Any]) -> str:
    """What to ask for: the variant that some graph has, or none."""
    names = {one["variant"] for one in computed["graphs"].values() if one["backend"] == computed["backend"]}
    return min(names - {"portable"}, default="portable")
