# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle verify``: everything about a bundle that can be checked, and its golden vectors on real backends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from genai_bundle.errors import BackendError, InvalidBundle, UsageError, VerificationError

if TYPE_CHECKING:
    from genai_bundle.bundle import Bundle
    from genai_bundle.manifest import Manifest

EXAMPLES = """\b
Examples:
  genai-bundle verify tiny-stories.genai
  genai-bundle verify tiny-stories.genai --backend all
  genai-bundle verify tiny-stories.genai --precision fast
  genai-bundle verify tiny-stories.genai --backend reference --variant portable --json
"""

PORTABLE, ALL = "portable", "all"

LARGE = 2 * 10**9
"""Bytes of a bundle that is not copied into its other form unasked."""

Status = Literal["ok", "FAILED", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    form: the container's, "file" or "folder", of a golden vector. difference: its largest |got - expected|, where it
    has one; of ids, with all backends, the largest difference of a logit from that of the first run, and in fast
    arithmetic on one, how far the score of an id is below the best.
    """

    check: str
    status: Status
    detail: str = ""
    backend: str | None = None
    variant: str | None = None
    form: str | None = None
    difference: float | None = None
    exit_code: int = 0


class Asked(NamedTuple):
    """What to run the golden vectors on."""

    backend: str
    variant: str | None
    device: str
    precision: str
    forms: str | None
    scores: dict[str, Any]
    """Of the run that others are compared with, the first one: by test."""


def register(app: typer.Typer) -> None:
    app.command("verify", epilog=EXAMPLES)(verify)


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle: a .genai file or its unpacked folder.")],
    backend: Annotated[
        str,
        typer.Option(metavar="NAME", help="Run the golden vectors here; 'all': on every backend that is installed."),
    ] = "onnxruntime",
    variant: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this variant, or 'portable'; by default all for the backend."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="Where the backend computes.")] = "cpu",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="'exact', or 'fast': held to the bounds that the bundle has for it.")
    ] = "exact",
    forms: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="'given', or 'both': file and folder; by default both with --backend all, up to 2 GB.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a bundle: schema, digests, graph rules, then its golden vectors on every variant.

    Exit code 0: all is well; 3: the bundle is invalid; 4: a golden vector gave another result; 5: a backend failed.
    """
    from genai_bundle.cli import console
    from genai_runner.placement import check_precision

    check_precision(precision)
    if forms not in (None, "given", "both"):
        raise UsageError(f"there is no choice {forms!r} of forms", where="--forms", hint="'given' or 'both'")
    checks: list[Check] = []
    try:
        for check in _checks(file, Asked(backend, variant, device, precision, forms, {})):
            checks.append(check)
    except InvalidBundle as error:
        if not json:
            raise
        checks.append(Check("bundle", "FAILED", str(error), exit_code=error.exit_code))
    vectors = [check for check in checks if check.backend is not None]
    if vectors and all(check.status == "skipped" for check in vectors):
        detail = "no installed backend ran them"
        checks.append(Check("golden vectors", "FAILED", detail, exit_code=BackendError.exit_code))
    # A wrong result weighs more than a backend that could not run: it says something about the bundle.
    code = min((check.exit_code for check in checks if check.exit_code), default=0)
    if json:
        lines = [asdict(check) | {"difference": _finite(check.difference)} for check in checks]
        for line in lines:
            del line["exit_code"]
        console.print_json({"ok": code == 0, "checks": lines})
    else:
        _print(checks)
    if code:
        raise typer.Exit(code)


def _checks(file: Path, asked: Asked) -> Iterator[Check]:
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli.console import progress
    from genai_runner.backends.base import engine_names

    with open_bundle(file) as bundle:
        manifest = bundle.manifest
        _check_variant(manifest, asked.variant)
        yield Check("container", "ok", f"{bundle.form} form, {len(manifest.files)} members")
        yield _schema_check(bundle)
        yield Check("pipeline", "ok", f"{len(manifest.inputs)} inputs, {len(manifest.outputs)} outputs")
        yield Check("graphs", "ok", ", ".join(manifest.graphs) or "none")
        with progress("checking digests") as report:
            bundle.verify(report)
        yield Check("digests", "ok", "the bytes of every member")
        backends = engine_names() if asked.backend == ALL else [asked.backend]
        yield from _prefixes(file, bundle, backends)
        if not manifest.tests:
            yield Check("golden vectors", "skipped", "the bundle has none: nothing was run")
            return
        for name in backends:
            yield from _golden(file, bundle, name, asked)
        if asked.forms == "both" or (asked.forms is None and asked.backend == ALL):
            yield from _in_the_other_form(bundle, backends, asked)


def _prefixes(file: Path, bundle: Bundle, backends: Sequence[str]) -> Iterator[Check]:
    """The saved prefixes in the bundle."""
    from genai_bundle.cli.verify_prefixes import check_prefixes

    for one in check_prefixes(file, bundle, backends):
        status: Status = "skipped" if one.exit_code is None else "FAILED" if one.exit_code else "ok"
        backend, variant = (None, None) if one.exit_code is None else (one.backend, one.variant)
        more = None, one.difference, one.exit_code or 0
        yield Check(f"prefix {one.name}", status, one.detail, backend, variant, *more)


def _in_the_other_form(bundle: Bundle, backends: Sequence[str], asked: Asked) -> Iterator[Check]:
    """The same golden vectors on the bundle as a folder where it is a file, or the other way, in a temporary folder."""
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli.copying import checked_parts
    from genai_bundle.writer import write_bundle, write_folder

    other = "folder" if bundle.form == "file" else "file"
    size = sum(entry.size for entry in bundle.manifest.files.values())
    if size > LARGE and asked.forms is None:
        way = "unpack" if other == "folder" else "pack"
        detail = f"a copy takes {size / 1e9:.1f} GB: --forms both makes it in TMPDIR, or {way} it and verify that"
        yield Check("other form", "skipped", detail, form=other)
        return
    with TemporaryDirectory(prefix="genai-bundle-") as scratch:
        copy = Path(scratch) / "bundle.genai"
        write = write_folder if other == "folder" else write_bundle
        manifest, members = checked_parts(bundle)
        write(copy, manifest, members)
        with open_bundle(copy) as again:
            same = again.id == bundle.id
            detail = "the same id" if same else f"the id is {again.id}, not {bundle.id}"
            code = 0 if same else VerificationError.exit_code
            yield Check("other form", "ok" if same else "FAILED", detail, form=other, exit_code=code)
            for name in backends:
                yield from _golden(copy, again, name, asked)


def _schema_check(bundle: Bundle) -> Check:
    """The manifest against the published JSON Schema, whose verdict must be that of the reader."""
    import json

    from jsonschema.exceptions import best_match

    from genai_bundle import FORMAT_VERSION
    from genai_bundle.schemas import validator

    if bundle.manifest.format != FORMAT_VERSION:  # of a newer minor version: its own schema may know more keys
        detail = f"the schema here states {FORMAT_VERSION}, the bundle is of {bundle.manifest.format}"
        return Check("schema", "skipped", detail)
    error = best_match(validator("manifest.schema").iter_errors(json.loads(bundle.manifest.raw)))
    if error is None:
        return Check("schema", "ok", f"format {bundle.manifest.format}")
    return Check("schema", "FAILED", f"{error.json_path}: {error.message}", exit_code=InvalidBundle.exit_code)


def _check_variant(manifest: Manifest, asked: str | None) -> None:
    known = [PORTABLE, *dict.fromkeys(variant.name for graph in manifest.graphs.values() for variant in graph.variants)]
    if asked is not None and asked not in known:
        raise UsageError(f"'{manifest.name}' has no variant {asked!r}", hint=f"It has: {', '.join(known)}")


def _golden(file: Path, bundle: Bundle, backend: str, asked: Asked) -> Iterator[Check]:
    """The golden vectors on one backend. That it is missing is an error where it was named."""
    from genai_runner.backends.base import find_backend
    from genai_runner.choice import forms

    try:
        find_backend(backend)
    except UsageError as error:
        if asked.backend != ALL:
            raise
        yield Check("golden vectors", "skipped", error.message, backend=backend, form=bundle.form)
        return
    made = forms(bundle.manifest, backend, asked.device)
    chosen = [name for name in made if asked.variant in (None, name)]
    if not chosen:
        detail = f"variant {asked.variant!r} is not made for it"
        yield Check("golden vectors", "skipped", detail, backend=backend, form=bundle.form)
    for name in chosen:
        for check in _golden_on(file, backend, name, asked):
            yield replace(check, form=bundle.form)


def _golden_on(file: Path, backend: str, variant: str, asked: Asked) -> Iterator[Check]:
    import genai_runner
    from genai_bundle.cli.console import phases
    from genai_runner.verify import run_tests, score_gaps

    how: dict[str, Any] = {"device": asked.device, "precision": asked.precision, "saved_prefixes": False}
    try:
        with (
            phases(f"golden vectors on {backend}, {variant}"),
            genai_runner.load(file, backend=backend, variant=variant, **how) as pipe,
        ):
            results = list(run_tests(pipe))
            gaps = score_gaps(pipe, asked.scores) if asked.backend == ALL else {}
            moved = [f"{name}: {place}" for name, place in pipe.placements.items() if place.reason]
    except (BackendError, UsageError) as error:
        if isinstance(error, UsageError) and asked.backend == ALL:  # it does not have the device
            yield Check("golden vectors", "skipped", error.message, backend=backend, variant=variant)
            return
        code = BackendError.exit_code
        yield Check("golden vectors", "FAILED", str(error), backend=backend, variant=variant, exit_code=code)
        return
    for result in results:
        yield Check(
            f"{result.name}: {result.output}",
            "ok" if result.passed else "FAILED",
            "; ".join([*([result.detail] if result.detail else []), *moved]),
            backend=backend,
            variant=variant,
            difference=gaps.get(result.name, result.difference),
            exit_code=0 if result.passed else VerificationError.exit_code,
        )


def _finite(number: float | None) -> float | None:
    """JSON has no word for a difference that is no number; such a check has failed, and says why."""
    return number if number is not None and isfinite(number) else None


def _print(checks: Sequence[Check]) -> None:
    from rich.table import Table

    from genai_bundle.cli import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("check", "form", "backend", "variant", "result", "largest diff"):
        table.add_column(title, no_wrap=True)
    table.add_column("detail", overflow="fold")
    for check in checks:
        difference = "" if check.difference is None else f"{check.difference:.3g}"
        place = (check.form or "", check.backend or "", check.variant or "")
        table.add_row(check.check, *place, check.status, difference, check.detail)
    console.stdout().print(table)
