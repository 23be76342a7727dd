# SPDX-License-Identifier: Apache-2.0
"""One module for each foreign layout, found by being here: no list to edit. A module that is a layout has

LAYOUT: what to call it, as in "this is ...";
recognises(path) -> bool: quick, from names and small files only; two layouts never recognise the same path;
assemble(path, options, tell) -> Assembled: reads the source, runs its graphs in a plain loop of its own (`proof`) and
writes what they gave into the manifest's `tests`. A layout that holds weights and no graphs has
build(path, target, options, tell) -> the bundle's id instead: it makes a `Checkpoint` and hands it to the builder.

`finish` writes what was assembled, and proves it: the finished file must give what the source gave before it gets its
name. Foreign configurations are read through `foreign`, which knows which keys nobody asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genai_bundle.builder.options import BuildOptions
    from genai_bundle.writer import Source

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Assembled:
    """A bundle before it is written.

    manifest: the document without `files`; `source` says what was read, what was compared and what was dropped.
    members: every member but the manifest. report: one line for each thing that a person should know, such as a
    deployment setting that a bundle does not carry.
    """

    manifest: Mapping[str, Any]
    members: Mapping[str, Source]
    report: Sequence[str] = ()


def check_options(options: BuildOptions, layout: str) -> None:
    """Refuse what is asked of graphs that are taken as they are. Raises UsageError."""
    from genai_bundle.errors import UsageError

    asked = {
        "--exporter": options.exporter,
        "--quantize": options.quantize,
        "--quantize-override": options.overrides,
        "--quantize-exclude": options.exclude,
        "--adapter": options.adapters,
        "--draft head": options.heads,
    }
    for name, value in asked.items():
        if value:
            raise UsageError(f"{name} works on checkpoints; this is {layout}, whose graphs are taken as they are")


def finish(found: Assembled, target: Path, options: BuildOptions, tell: Progress) -> str:
    """Write the bundle file `target`, once it has given what its tests say, and return its id.

    Raises:
        ProofError: a graph variant gives another result than the source; nothing is written.
        InvalidBundle: what was assembled is against the format; nothing is written.
    """
    from genai_bundle.builder.report import Report
    from genai_bundle.bundle import open_bundle
    from genai_bundle.writer import write_bundle

    report = Report.of(tell)
    for line in found.report:
        report.note(line)

    def prove(path: Path) -> None:
        from genai_bundle.builder.measure_fast import measure_fast
        from genai_bundle.builder.prove import prove_tests  # late: brings the runner and its engines

        tell("checking")
        open_bundle(path).close()
        tell("running the tests")
        report.tested(prove_tests(path))
        report.figures |= measure_fast(path)

    source = {**report.source(), **found.manifest["source"]}
    manifest = {**found.manifest, "source": source, **{key: value for key, value in options.details.items() if value}}
    tell("writing")
    return write_bundle(target, manifest, found.members, overwrite=options.overwrite, before_commit=prove)
