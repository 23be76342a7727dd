# SPDX-License-Identifier: Apache-2.0
"""Kinds of models, by what a pipeline with them takes and gives: text continued, text answered, speech written down.

A kind is one module here, and knows no family: which exporters can make its graphs, what the manifest says of them,
what the source model is asked, and how a finished bundle is compared with the answers.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.errors import SourceError

if TYPE_CHECKING:
    from genai_bundle.builder.exporters import Export
    from genai_bundle.writer import Source

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What the source model itself answered.

    tests: the manifest's `tests`. proof: its `source.proof`; only what every build repeats.
    prove(path, backend): compares a finished bundle file with the answers, in every form that it has; with a backend's
    name, in its portable form on that one. The largest difference by variant. Raises ProofError.
    dropped: settings of the source that the bundle does not carry out, by file. files: what was read of the folder
    beside `checkpoint.members`.
    effect(text, tell): where weights are stored in another form, what that changes, as figures to print; with a text,
    its perplexity too. None where this kind measures nothing.
    head: the record of the proof of a head that is the draft; empty where there is none.
    """

    tests: Sequence[Json]
    proof: Json
    prove: Callable[[Path, str | None], Mapping[str, float]]
    dropped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Sequence[str] = ()
    effect: Callable[[str | None, Callable[[str], None]], Mapping[str, str]] | None = None
    head: Json = field(default_factory=dict)


class Kind(Protocol):
    """A module of this package."""

    def matches(self, config: Json) -> bool:
        """Whether config.json describes such a model."""
        ...

    def exporters(self) -> Mapping[str, Callable[[Checkpoint], Export]]:
        """What can make the graphs, by name, in the order in which it is tried. Torch is imported in each."""
        ...

    def ask(self, checkpoint: Checkpoint) -> Evidence:
        """Run the source model."""
        ...

    def document(self, checkpoint: Checkpoint, export: Export, graphs: Mapping[str, Json]) -> Json:
        """The manifest's task, graphs, inputs, outputs, state, steps, text and generation.

        `graphs` are the entries of the manifest's `graphs` for what `export` holds, variants included.
        """
        ...

    def members(self, checkpoint: Checkpoint) -> Mapping[str, Source]:
        """What the bundle holds beside graphs and weights."""
        ...


def choose(config: Json) -> Kind:
    """The kind of the model that config.json describes. Raises SourceError where there is none."""
    for name in sorted(entry.name for entry in pkgutil.iter_modules(__path__)):
        module: Any = import_module(f"{__name__}.{name}")
        if module.matches(config):
            kind: Kind = module
            return kind
    named = ", ".join(map(str, config.get("architectures") or [])) or config.get("model_type")
    raise SourceError(
        f"describes {named}, a kind of model that cannot be built yet", where="config.json",
        hint="The kinds that can are listed in docs/families.md",
    )  # fmt: skip
