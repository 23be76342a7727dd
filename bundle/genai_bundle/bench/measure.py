# SPDX-License-Identifier: Apache-2.0
"""From a bundle and a wish to figures: which sides, which contexts, and the processes that run them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from genai_bundle.bench import Peer, Side
from genai_bundle.bench.child import Child
from genai_bundle.bench.sweep import Found, sweep, together
from genai_bundle.bundle import Bundle, open_bundle
from genai_bundle.errors import GenaiError, UsageError
from genai_runner.backends.base import engine_names
from genai_runner.cores import available_cores

OURS = "genai_bundle.bench.ours"
SLOW = "reference"
"""Ours too, but to be right and not to be fast: measured only where it is asked for."""

CONTEXTS = (128, 512, 2048)

Report = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What to measure; None where the bundle or the machine decides.

    demanding: a peer that cannot run the bundle is an error; else it is left out, with the reason.
    """

    backends: Sequence[str] | None = None
    peers: Sequence[Peer] = ()
    contexts: Sequence[int] | None = None
    batches: Sequence[int] = (1,)
    steps: int = 16
    rounds: int = 3
    precision: str | None = None
    threads: int | None = None
    variant: str = "auto"
    checkpoint: Path | None = None
    folder: Path | None = None
    demanding: bool = True


def measure(bundle: Path, wish: Wish, report: Report) -> Found:
    """Load every side, let them take turns, and end them; and again in another order.

    What is loaded first may get slower memory than the next (seen: 5 to 8 % in a step that reads all weights), so the
    rounds are shared out among as many loadings as there are sides, each in its turn the first.
    """
    with open_bundle(bundle) as opened:
        contexts, name = fitting(opened, wish), opened.id.split(":")[-1][:16]
    left_out: list[str] = []
    with ExitStack() as kept:
        folder = wish.folder or Path(kept.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            ours = list(_ours(bundle, wish, stack, report, left_out))
            if not ours:
                raise UsageError(f"no engine runs {bundle}", hint="; ".join(left_out) or "Install onnxruntime")
            room = max(contexts) + wish.steps + 1
            peers = list(_peers(bundle, wish, folder / name, ours[0], room, stack, report, left_out))
            children = [*ours, *peers]
            prompts = {context: ours[0].ids(context) for context in contexts}
            sides, names = [child.side for child in children], tuple(child.side.name for child in ours)
            shares = _shares(wish.rounds, len(sides))
            found = [sweep(children, prompts, wish.batches, wish.steps, shares[0], report)]
        for number, rounds in enumerate(shares[1:], 1):
            with ExitStack() as stack:
                first = number * len(sides) // len(shares)
                report("loading all again, in another order")
                children = [stack.enter_context(Child(side)) for side in (*sides[first:], *sides[:first])]
                found.append(sweep(children, prompts, wish.batches, wish.steps, rounds, report))
    whole = together(found)
    return replace(whole, left_out=(*left_out, *whole.left_out), ours=names)


def _shares(rounds: int, sides: int) -> list[int]:
    """The rounds of each loading."""
    loadings = min(rounds, sides)
    return [rounds // loadings + (number < rounds % loadings) for number in range(loadings)]


def _peers(
    bundle: Path, wish: Wish, folder: Path, ours: Child, room: int, stack: ExitStack, report: Report, out: list[str]
) -> Iterator[Child]:
    """A process for each peer, at the precision of ours. `folder`: what the names of their files begin with."""
    for peer in wish.peers:
        report(f"making the files for {peer.NAME}")
        try:
            source = peer.prepare(bundle, folder.with_name(f"{folder.name}-{peer.NAME}"), wish.checkpoint)
            side = Side(peer.NAME, _module(peer), source, ours.facts["precision"], ours.side.threads, room=room)
            yield stack.enter_context(Child(side))
        except GenaiError as error:
            if wish.demanding:
                raise
            out.append(f"{peer.NAME}: {error}")


def _module(peer: Peer) -> str:
    name: str = peer.__name__  # type: ignore[attr-defined]
    return name


def _ours(bundle: Path, wish: Wish, stack: ExitStack, report: Report, left_out: list[str]) -> Iterator[Child]:
    """A process for each engine of ours. One that was not asked for by name may be missing or refuse the bundle."""
    threads = wish.threads or available_cores()
    for name in wish.backends or [name for name in engine_names() if name != SLOW]:
        report(f"loading on {name}")
        side = Side(name, OURS, bundle, wish.precision, threads, backend=name, variant=wish.variant)
        try:
            yield stack.enter_context(Child(side))
        except GenaiError as error:
            if wish.backends:
                raise
            left_out.append(f"{name}: {error}")


def fitting(bundle: Bundle, wish: Wish) -> list[int]:
    """The contexts to measure: those asked for, or the usual ones that the bundle's capacity takes."""
    capacities = [state.capacity for state in bundle.manifest.state.values() if state.capacity and state.tokens]
    most = min(capacities, default=0) - wish.steps - 1 if capacities else None
    if wish.contexts is None:
        fit = [context for context in CONTEXTS if most is None or context <= most]
        return fit or [max(1, (most or 1) // 2)]
    if most is not None and max(wish.contexts) > most:
        asked = f"{max(wish.contexts)} tokens and {wish.steps} steps"
        raise UsageError(f"{asked} are more than the context of {min(capacities)}", where=str(bundle.path))
    return list(wish.contexts)
