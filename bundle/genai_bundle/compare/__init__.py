# SPDX-License-Identifier: Apache-2.0
"""What differs between two bundles: their documents, members, graphs, weights and texts.

Digests come first, so equal parts are never read; what differs is read in chunks, so memory does not grow with it.
Stands on the reading side: a comparison runs nothing. A signature
says who made a bundle, not what it is, and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from genai_bundle.compare.documents import changes
from genai_bundle.compare.graphs import GraphFile, graph_changes, graph_files
from genai_bundle.compare.tensors import Tensors, compare_tensors
from genai_bundle.compare.texts import template_changes, tokenizer_changes

if TYPE_CHECKING:
    from genai_bundle.bundle import Bundle

__all__ = ["Difference", "compare"]

Json = Any
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Difference:
    """Every part is JSON; an empty one means that there is no difference in it.

    manifest: {path, change, before, after} for each key. members: the same for each member, with sizes and digests.
    graphs: by the name of graph and form. tensors: by initializer; the first changed part of a quantised weight has the
    distance of what the weight stands for, too. same: how many tensors have the same bytes.
    tokenizer: what its vocabulary gained and lost. template: a unified diff.
    """

    manifest: list[Json] = field(default_factory=list)
    members: list[Json] = field(default_factory=list)
    graphs: list[Json] = field(default_factory=list)
    tensors: list[Json] = field(default_factory=list)
    same: int = 0
    tokenizer: Json = field(default_factory=dict)
    template: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """The two have the same manifest, and with it the same members, byte for byte."""
        return not (self.manifest or self.members)


def compare(first: Bundle, second: Bundle, progress: Progress | None = None) -> Difference:
    """All differences, from `first` to `second`. `progress` gets the bytes of weights compared, and all there are.

    Weights with the digests that both manifests list are taken to be what these say; `Bundle.verify` reads them.
    """
    if first.id == second.id:
        return Difference()
    documents = [json.loads(one.manifest.raw) for one in (first, second)]
    for document in documents:
        del document["files"]
    files = [
        {path: {"size": entry.size, "sha256": entry.sha256} for path, entry in one.manifest.files.items()}
        for one in (first, second)
    ]
    before, after = graph_files(first), graph_files(second)
    shared = [name for name in before if name in after]
    tensors = compare_tensors(first, second, [(before[name], after[name], name) for name in shared], progress)
    return Difference(
        manifest=changes(*documents),
        members=_members(*files),
        graphs=[*_graphs(first, second, before, after, tensors)],
        tensors=tensors.changed,
        same=tensors.same,
        tokenizer=tokenizer_changes(first, second),
        template=template_changes(first, second),
    )


def _members(before: dict[str, Json], after: dict[str, Json]) -> list[Json]:
    found: list[Json] = []
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if old != new:
            change = "added" if old is None else "removed" if new is None else "changed"
            found.append({"path": path, "change": change, "before": old, "after": new})
    return found


def _graphs(
    first: Bundle, second: Bundle, before: dict[str, GraphFile], after: dict[str, GraphFile], tensors: Tensors
) -> list[Json]:
    """Each graph and form that one of them lacks, or that is another in the other."""
    found: list[Json] = []
    for name in dict.fromkeys((*before, *after)):
        if name not in after or name not in before:
            found.append({"name": name, "change": "removed" if name in before else "added"})
            continue
        entries = first.manifest.files[before[name]], second.manifest.files[after[name]]
        if entries[0].sha256 != entries[1].sha256:
            details = graph_changes(first.graph(before[name]), second.graph(after[name]))
            if details or name not in tensors.touched:
                found.append({"name": name, "change": "changed", **(details or {"only": "names, texts or metadata"})})
    return found
