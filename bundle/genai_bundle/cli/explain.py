# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle run --explain``: how fast each installed backend runs a bundle, and where its graphs would run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from genai_runner.choice import Figure
    from genai_runner.placement import Placement

AUTO = "auto"


def explain(file: Path, backend: str, settings: Mapping[str, Any], *, json: bool) -> None:
    """Print the figures of every backend, the one that would run the bundle marked, and the place of each graph."""
    import genai_runner
    from genai_bundle.cli import console
    from genai_runner import choice
    from genai_runner.cores import available_cores

    options = {**settings, "threads": settings["threads"] or available_cores()}
    variant = options.pop("variant")
    with console.phases("measuring") as report:
        found = choice.figures(
            file, genai_runner.load, variant=None if variant == AUTO else variant, report=report, **options
        )
    with genai_runner.load(file, backend, variant=variant, **options) as pipe:
        places, taken = pipe.placements, pipe.backend_name
    if json:
        graphs = {name: asdict(place) for name, place in places.items()}
        console.print_json({"backend": taken, "figures": [asdict(one) for one in found], "graphs": graphs})
    else:
        _print(found, places)


def _print(found: Sequence[Figure], places: Mapping[str, Placement]) -> None:
    from rich.table import Table

    from genai_bundle.cli import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("backend", "variant", "prompt", "token", "loaded in", "largest diff"):
        table.add_column(title, no_wrap=True)
    table.add_column("", overflow="fold")
    for figure in found:
        table.add_row(figure.backend, figure.variant, *_cells(figure))
    console.stdout().print(table)
    for name, place in places.items():
        typer.echo(f"{name}: {place}")


def _cells(figure: Figure) -> Iterator[str]:
    for seconds in (figure.prefill_s, figure.step_s, figure.load_s):
        yield "" if seconds is None else f"{seconds * 1000:.2f} ms"
    yield "" if figure.difference is None else f"{figure.difference:.3g}"
    yield "the fastest right one" if figure.chosen else figure.reason
