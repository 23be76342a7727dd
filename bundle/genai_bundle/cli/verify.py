# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle verify``: everything about a bundle that can be checked, and its golden vectors on real backends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genai_bundle.errors import BackendError, InvalidBundle, UsageError, VerificationError

if TYPE_CHECKING:
    from genai_bundle.bundle import Bundle
    from genai_bundle.manifest import Manifest

EXAMPLES = """\b
Examples:
  genai-bundle verify tiny-stories.genai
  genai-bundle verify tiny-stories.genai --backend all
  genai-bundle verify tiny-stories.genai --backend reference --variant portable --json
"""

PORTABLE = "portable"

Status = Literal["ok", "FAILED", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `difference`: the largest |got - expected| of a golden vector, where it has one."""

    check: str
    status: Status
    detail: str = ""
    backend: str | None = None
    variant: str | None = None
    difference: float | None = None
    exit_code: int = 0


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
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="'exact', or 'fast': held to the bounds that the bundle has for it.")
    ] = "exact",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a bundle: schema, digests, graph rules, then its golden vectors on every variant.

    Exit code 0: all is well; 3: the bundle is invalid; 4: a golden vector gave another result; 5: a backend failed.
    """
    from genai_bundle.cli import console

    checks: list[Check] = []
    try:
        for check in _checks(file, backend, variant, precision):
            checks.append(check)
    except InvalidBundle as error:
        if not json:
            raise
        checks.append(Check("bundle", "FAILED", str(error), exit_code=error.exit_code))
    # A wrong result weighs more than a backend that could not run: it says something about the bundle.
    code = min((check.exit_code for check in checks if check.exit_code), default=0)
    if json:
        lines = [{key: value for key, value in asdict(check).items() if key != "exit_code"} for check in checks]
        console.print_json({"ok": code == 0, "checks": lines})
    else:
        _print(checks)
    if code:
        raise typer.Exit(code)


def _checks(file: Path, backend: str, variant: str | None, precision: str) -> Iterator[Check]:
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli.console import progress

    with open_bundle(file) as bundle:
        manifest = bundle.manifest
        backends = _backends(backend)
        _check_variant(manifest, variant)
        yield Check("container", "ok", f"{bundle.form} form, {len(manifest.files)} members")
        yield _schema_check(bundle)
        yield Check("pipeline", "ok", f"{len(manifest.inputs)} inputs, {len(manifest.outputs)} outputs")
        yield Check("graphs", "ok", ", ".join(manifest.graphs) or "none")
        with progress("checking digests") as report:
            bundle.verify(report)
        yield Check("digests", "ok", "the bytes of every member")
    if not manifest.tests:
        yield Check("golden vectors", "skipped", "the bundle has none: nothing was run")
        return
    for name in backends:
        yield from _golden(file, manifest, name, variant, precision, asked=backend != "all")


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


def _backends(asked: str) -> list[str]:
    from genai_runner.backends.base import engine_names

    return [asked] if asked != "all" else engine_names()


def _check_variant(manifest: Manifest, asked: str | None) -> None:
    known = [PORTABLE, *dict.fromkeys(variant.name for graph in manifest.graphs.values() for variant in graph.variants)]
    if asked is not None and asked not in known:
        raise UsageError(f"'{manifest.name}' has no variant {asked!r}", hint=f"It has: {', '.join(known)}")


def _variants(manifest: Manifest, backend: str, asked: str | None) -> list[str]:
    """What to run on a backend: the portable graphs, then each variant that is made for it."""
    made = (variant for graph in manifest.graphs.values() for variant in graph.variants)
    names = [PORTABLE, *dict.fromkeys(variant.name for variant in made if variant.when.get("backend") == backend)]
    return names if asked is None else [name for name in names if name == asked]


def _golden(
    file: Path, manifest: Manifest, backend: str, variant: str | None, precision: str, *, asked: bool
) -> Iterator[Check]:
    """The golden vectors on one backend. `asked`: it was named, so that its absence is an error."""
    from genai_runner.backends.base import find_backend

    try:
        find_backend(backend)
    except UsageError as error:
        if asked:
            raise
        yield Check("golden vectors", "skipped", error.message, backend=backend)
        return
    chosen = _variants(manifest, backend, variant)
    if not chosen:
        yield Check("golden vectors", "skipped", f"variant {variant!r} is not made for it", backend=backend)
    for name in chosen:
        yield from _golden_on(file, backend, name, precision)


def _golden_on(file: Path, backend: str, variant: str, precision: str) -> Iterator[Check]:
    import genai_runner
    from genai_bundle.cli.console import phases
    from genai_runner.verify import run_tests

    try:
        with (
            phases(f"golden vectors on {backend}, {variant}"),
            genai_runner.load(file, backend=backend, variant=variant, precision=precision) as pipe,
        ):
            results = list(run_tests(pipe))
    except (BackendError, UsageError) as error:
        code = BackendError.exit_code
        yield Check("golden vectors", "FAILED", str(error), backend=backend, variant=variant, exit_code=code)
        return
    for result in results:
        yield Check(
            f"{result.name}: {result.output}",
            "ok" if result.passed else "FAILED",
            result.detail,
            backend=backend,
            variant=variant,
            difference=result.difference,
            exit_code=0 if result.passed else VerificationError.exit_code,
        )


def _print(checks: Sequence[Check]) -> None:
    from rich.table import Table

    from genai_bundle.cli import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("check", "backend", "variant", "result", "largest diff"):
        table.add_column(title, no_wrap=True)
    table.add_column("detail", overflow="fold")
    for check in checks:
        difference = "" if check.difference is None else f"{check.difference:.3g}"
        table.add_row(check.check, check.backend or "", check.variant or "", check.status, difference, check.detail)
    console.stdout().print(table)
