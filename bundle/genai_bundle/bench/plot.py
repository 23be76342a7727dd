# SPDX-License-Identifier: Apache-2.0
"""A sweep as a picture: prompt and generation speed over the context, one line a side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genai_bundle.bench.sweep import Row
from genai_bundle.errors import UsageError

FORMS = (".svg", ".png")
COLOURS = ("#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#e87ba4", "#008300", "#4a3aa7", "#e34948")
"""Colours that people with any colour vision tell apart, in this order."""
INK, PALE, PAPER = "#52514e", "#d8d7d2", "#fcfcfb"
MARKERS = "osD^vPX"
SPEEDS = (("prompt", "prefill_tokens_per_s"), ("generation", "tokens_per_s"))


def check(path: Path) -> None:
    """Raises UsageError where a plot could not be written there, before anything is measured."""
    if path.suffix not in FORMS:
        raise UsageError(f"{path}: a plot is one of {', '.join(FORMS)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError("a plot needs matplotlib", hint="Try: pip install 'genai-bundle[plot]'") from error


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write the plot. A row of panels for each batch; the sides keep their colours in all of them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    batches = sorted({row.batch for row in rows})
    sides = list(dict.fromkeys(row.side for row in rows))
    contexts = sorted({row.context for row in rows})
    figure = Figure(figsize=(9, 3.6 * len(batches)), layout="constrained", facecolor=PAPER)
    panels = figure.subplots(len(batches), 2, squeeze=False)
    for line, batch in zip(panels, batches, strict=True):
        for axes, (what, name) in zip(line, SPEEDS, strict=True):
            for number, side in enumerate(sides):
                own = [row for row in rows if (row.side, row.batch) == (side, batch)]
                values = [getattr(row, name) for row in own]
                style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
                axes.plot([row.context for row in own], values, label=side, linewidth=2, markersize=7, **style)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(contexts))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.set_ylim(bottom=0)
            axes.set_title(what if len(batches) == 1 else f"{what}, batch {batch}", loc="left", color=INK, fontsize=10)
            axes.set_xlabel("tokens of context", color=INK)
            axes.set_ylabel("tokens a second", color=INK)
            axes.set_facecolor(PAPER)
            axes.grid(axis="y", color=PALE, linewidth=0.7)
            axes.tick_params(colors=INK, length=0)
            for edge in ("top", "right", "left"):
                axes.spines[edge].set_visible(False)
            axes.spines["bottom"].set_color(PALE)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, frameon=False, labelcolor=INK)
    figure.suptitle(title, x=0.01, ha="left", color=INK)
    figure.savefig(path, dpi=150)
