# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle bench``: how fast a bundle reads a prompt and generates, beside other stacks on the same weights."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genai_bundle.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from genai_bundle.bench.sweep import Found

EXAMPLES = """\b
Examples:
  genai-bundle bench tiny-stories.genai
  genai-bundle bench tiny-stories.genai --contexts 16,64,256 --steps 32 --rounds 5
  genai-bundle bench model.genai --backend onnxruntime --peer onnxruntime-genai
  genai-bundle bench model.genai --peer all --contexts 128,2048 --plot speed.svg
  genai-bundle bench model.genai --peer transformers --checkpoint checkpoint/ --json
"""

ALL = "all"


def register(app: typer.Typer) -> None:
    app.command("bench", epilog=EXAMPLES)(bench)


def bench(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Bundles: .genai files or their unpacked folders.")
    ],
    backend: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="An engine of ours; may be repeated. By default each.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another stack to compare with; may be repeated. 'all': those installed."),
    ] = None,
    contexts: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Tokens of the prompts; by default 128,512,2048 that fit.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Requests at once.")] = "1",
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens after the first.")] = 16,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Turns of each side that count.")] = 3,
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="'exact' or 'fast', for all sides; by default as `run` takes it.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of each side; by default the cores it may use.")
    ] = None,
    variant: Annotated[
        str, typer.Option(metavar="NAME", help="'auto': the best for each engine; 'portable'; or a variant's name.")
    ] = "auto",
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="What it was built from; transformers and llama.cpp need it."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep here what is made for peers, and use what is here.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PATH", help="Draw the speeds: .svg or .png.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every time.")] = False,
) -> None:
    """Measure how fast bundles run: the prompt and each token after it, over contexts, batches and engines.

    Every side is a process of its own, with the same ids, threads and precision; they take turns. Figures are
    medians; '× peer' is how many times as fast as that peer the best of ours is, by the median of the rounds.
    Memory is the most that a process took, Python and libraries included: 'resident' counts pages of mapped files,
    'private' does not; '× ours' is a peer's over the least of ours.
    """
    from genai_bundle.bench import find_peer, known_peers, missing
    from genai_bundle.bench import plot as plots
    from genai_bundle.bench.measure import Wish, measure
    from genai_bundle.cli import console

    if plot is not None:
        plots.check(plot)
    every = ALL in (peer or ())
    others = [one for one in known_peers().values() if not missing(one)] if every else []
    others += [one for name in peer or () if name != ALL and (one := find_peer(name)) not in others]
    wish = Wish(
        backend, others, numbers("--contexts", contexts), numbers("--batch", batch) or [1], steps, rounds, precision,
        threads, variant, checkpoint, folder, demanding=not every,
    )  # fmt: skip
    results: dict[str, Found] = {}
    for file in files:
        with console.phases(f"measuring {file.name}") as report:
            results[str(file)] = measure(file, wish, report)
    if json:
        console.print_json({"steps": steps, "files": {name: facts(found) for name, found in results.items()}})
    for name, found in results.items():
        if not json:
            show(name, found)
        for line in found.left_out:
            console.note(f"left out: {line}")
    if plot is not None:
        many = len(results) > 1
        rows = [replace(row, side=f"{Path(name).stem}, {row.side}" if many else row.side)
                for name, found in results.items() for row in found.rows]  # fmt: skip
        plots.draw(rows, plot, ", ".join(Path(name).name for name in results))
        console.note(f"wrote {plot}")


def numbers(option: str, text: str | None) -> list[int] | None:
    """`128,2048` as numbers above zero."""
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"{option} is {text!r}, but it takes whole numbers above 0 with commas between them")
    return found


def facts(found: Found) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "ours": list(found.ours),
        "sides": {name: {**one, "memory_ratio": found.memory(name)} for name, one in found.facts.items()},
        "rows": [row.as_dict() for row in found.rows],
        "ratios": [asdict(ratio) for ratio in found.ratios()],
        "left_out": list(found.left_out),
    }


def show(name: str, found: Found) -> None:
    """A table of speeds, one of the sides, and the ratios."""
    from genai_bundle.cli import console

    out = console.stdout()
    out.print(f"{name}\n", style="bold")
    speeds = _table("context", "batch", "side", "prompt", "tokens/s", "token", "tokens/s", "× peer: prompt", "token")
    ratios = {(ratio.peer, ratio.context, ratio.batch): ratio for ratio in found.ratios()}
    for row in found.rows:
        ratio = ratios.get((row.side, row.context, row.batch))
        speeds.add_row(
            str(row.context), str(row.batch), row.side,
            f"{1e3 * row.prefill_s:.1f} ms", f"{row.prefill_tokens_per_s:.0f}",
            f"{1e3 * row.step_s:.2f} ms", f"{row.tokens_per_s:.1f}",
            *((f"{ratio.prefill:.2f}", f"{ratio.decode:.2f}") if ratio else ("", "")),
        )  # fmt: skip
    out.print(speeds)
    out.print()
    sides = _table("side", "version", "precision", "loaded in", "peak resident", "× ours", "peak private")
    for side, one in found.facts.items():
        resident, private = (
            "" if size is None else console.human_size(size)
            for size in (one["peak_rss_bytes"], one["peak_private_bytes"])
        )
        times = None if side in found.ours else found.memory(side)
        sides.add_row(
            side, str(one["version"]), str(one["precision"]), f"{one['load_s']:.2f} s",
            resident, "" if times is None else f"{times:.2f}", private,
        )  # fmt: skip
    out.print(sides)


def _table(*titles: str) -> Table:
    from rich.table import Table

    words = {"side", "version", "precision"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="left" if title in words else "right", no_wrap=True)
    return table
