# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle backends``: which engines are installed, and what each of them computes rightly, wrongly or not."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genai_bundle.errors import UsageError

if TYPE_CHECKING:
    from genai_runner.probe import Table

EXAMPLES = """\b
Examples:
  genai-bundle backends
  genai-bundle backends --backend onnxruntime --all
  genai-bundle backends --backend onnxruntime --precision fast --json
  genai-bundle backends --refresh                     # after an engine was rebuilt under the same version
"""

EVERY = "all"


def register(app: typer.Typer) -> None:
    app.command("backends", epilog=EXAMPLES)(backends)


def backends(
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="Only this backend; 'all': every installed one.")
    ] = EVERY,
    device: Annotated[str, typer.Option(metavar="NAME", help="The device that is tried.")] = "cpu",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="The arithmetic that is tried: exact or fast.")
    ] = "exact",
    everything: Annotated[bool, typer.Option("--all", help="Show what is right on every backend too.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Try everything again, whatever is remembered.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the installed backends: versions, devices, and which operators they get right, wrong, or lack.

    It is found out by running small graphs with known answers, and remembered for each version of an engine. A graph
    that needs what is wrong or missing does not run on that backend.
    """
    from genai_bundle.cli import console
    from genai_runner.backends.base import engine_names
    from genai_runner.placement import check_precision

    check_precision(precision)
    names = engine_names() if backend == EVERY else [backend]
    found = [_examine(name, device, precision, refresh, asked=backend != EVERY) for name in names]
    if json:
        console.print_json({"backends": [_facts(name, one) for name, one in zip(names, found, strict=True)]})
        return
    _print([one for one in found if not isinstance(one, str)], everything)
    for name, one in zip(names, found, strict=True):
        if isinstance(one, str):
            console.note(f"{name}: {one}")


def _examine(name: str, device: str, precision: str, refresh: bool, *, asked: bool) -> tuple[Table, list[str]] | str:
    """The table of a backend and its devices; a text where it cannot be used, unless it was `asked` for by name."""
    from genai_bundle.cli import console
    from genai_runner.backends.base import LoadOptions, find_backend
    from genai_runner.probe import support

    try:
        engine = find_backend(name)
        with console.progress(f"trying {name}") as report:
            options = LoadOptions(device=device, precision=precision)
            table = support(engine, options=options, refresh=refresh, report=report)
        devices = getattr(engine, "devices", None)  # a method that a backend may have
        return table, list(devices()) if devices else ["cpu"]
    except UsageError as error:
        if asked:
            raise
        return str(error)


def _facts(name: str, found: tuple[Table, list[str]] | str) -> dict[str, Any]:
    from genai_runner.probe import CASES

    if isinstance(found, str):
        return {"name": name, "usable": False, "reason": found}
    table, devices = found
    cases = [
        {"operator": case.operator, "what": case.what, "verdict": verdict.word, "detail": verdict.detail}
        for case in CASES
        if (verdict := table.verdicts.get(case.name))
    ]
    about = {"version": table.version, "devices": devices, "device": table.device, "precision": table.precision}
    return {"name": name, "usable": True, **about, "cases": cases}


def _print(found: list[tuple[Table, list[str]]], everything: bool) -> None:
    from rich.table import Table as Grid

    from genai_bundle.cli import console
    from genai_runner.probe import CASES

    summary = Grid(box=None, pad_edge=False, header_style="bold")
    for title in ("backend", "version", "devices", "right", "wrong", "missing"):
        summary.add_column(title)
    for table, devices in found:
        counts = Counter(verdict.word for verdict in table.verdicts.values())
        numbers = (str(counts[word]) for word in ("right", "wrong", "missing"))
        summary.add_row(table.backend, table.version, ", ".join(devices), *numbers)
    console.stdout().print(summary)
    if not found:
        return
    rows = Grid(box=None, pad_edge=False, header_style="bold")
    for title in ("operator", "what of it", *(table.backend for table, _ in found)):
        rows.add_column(title)
    hidden = 0
    for case in CASES:
        words = [table.verdicts[case.name].word for table, _ in found]
        if everything or set(words) != {"right"}:
            rows.add_row(case.operator, case.what, *words)
        else:
            hidden += 1
    out = console.stdout()
    out.print()
    out.print(rows)
    if hidden:
        out.print(f"\n{hidden} more are right on all of these; --all shows them")
