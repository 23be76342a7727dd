# SPDX-License-Identifier: Apache-2.0
"""What a build did: told line by line as it goes on, and kept, for a table at the end and for the manifest's `source`.

Two kinds of fact are kept apart. What every build of the same source repeats goes into the bundle; what the processor
decides, such as measured differences, is only printed: else the same inputs would not give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle.errors import GenaiError, ProofError
from genai_bundle.layout import is_weights

if TYPE_CHECKING:
    from genai_bundle.bundle import Bundle

Tell = Callable[[str], None]
Json = Mapping[str, Any]


@dataclass
class Report:
    """A record that builders and importers fill, and that is called with each next step: it takes the place of `tell`.

    tell: gets each step. layout: what the source was taken for, and path where it lies. published: the repository and
    the revision of it that were read, where that is known. failures: the exporters that were tried in vain, each
    with its error, in their order. proved: the forms of the bundle that passed, with the largest difference where
    logits were compared. figures: anything measured, by name, ready to print. notes: what a person should know, such
    as a setting that was left out.
    """

    tell: Tell = lambda _: None
    layout: str = ""
    path: Path | None = None
    published: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, GenaiError]] = field(default_factory=list)
    proved: dict[str, float | None] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, tell: Tell | None) -> Report:
        """The report behind a `tell`; a new one where it is only a function."""
        return tell if isinstance(tell, Report) else cls(tell or (lambda _: None))

    def __call__(self, step: str) -> None:
        self.tell(step)

    def recognised(self, layout: str, path: Path) -> None:
        """Say what the source at `path` is."""
        self.layout, self.path = layout, path
        self.tell(f"this is {layout}")

    def failed(self, exporter: str, error: GenaiError) -> None:
        """An exporter's graphs could not be made, or were not right; the next one is tried."""
        self.failures.append((exporter, error))
        self.proved.clear()
        self.tell(f"{exporter} failed: {error.message}")

    def passed(self, differences: Mapping[str, float]) -> None:
        """The logits of these forms are as near to the source model's as that."""
        self.proved |= differences
        self.tell("proved, largest difference: " + ", ".join(f"{name} {gap:.1e}" for name, gap in differences.items()))

    def tested(self, forms: Sequence[str]) -> None:
        """These forms gave what the golden vectors say."""
        self.proved = {form: self.proved.get(form) for form in dict.fromkeys((*self.proved, *forms))}

    def note(self, line: str) -> None:
        """Something that a person should know."""
        self.notes.append(line)
        self.tell(line)

    def source(self) -> Json:
        """The part of the manifest's `source` that this record has: only what every build repeats."""
        tried = [
            {"name": name, "failed": "proof" if isinstance(error, ProofError) else "export"}
            for name, error in self.failures
        ]
        return {**self.published, **({"tried": tried} if tried else {})}


def summary(report: Report, bundle: Bundle) -> dict[str, Any]:
    """Everything that `build` has to say of a finished bundle, as JSON values. Sizes are in bytes."""
    manifest = bundle.manifest
    files = manifest.files
    graphs = {entry.file for entry in manifest.graphs.values()}
    graphs |= {variant.file for entry in manifest.graphs.values() for variant in entry.variants}
    weights = sum(entry.size for path, entry in files.items() if is_weights(path))
    topology = sum(entry.size for path, entry in files.items() if path in graphs)
    whole = sum(entry.size for entry in files.values())
    read = _read_size(report.path, manifest.source.get("files"))
    return {
        "layout": report.layout,
        **report.published,
        "exporter": manifest.source.get("exporter"),
        "tried": [{"name": name, "reason": str(error)} for name, error in report.failures],
        "read": {"files": dict(manifest.source.get("files") or {}), "size": read},
        "proof": manifest.source.get("proof") or {},
        "proved": report.proved,
        "draft": dict(manifest.source.get("draft") or {}).get("name"),
        "weights": manifest.source.get("weights"),
        "sizes": {"weights": weights, "graphs": topology, "other": whole - weights - topology},
        "dropped": manifest.source.get("dropped"),
        "figures": report.figures,
        "notes": report.notes,
    }


def _read_size(source: Path | None, files: Any) -> int | None:
    """Bytes of the source's files, None where the record does not name them."""
    if source is None:
        return None
    folder = source.parent if source.is_file() else source
    names = [folder / name for name in files] if isinstance(files, Mapping) else []
    return sum(path.stat().st_size for path in names if path.is_file()) or None
