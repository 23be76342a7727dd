# SPDX-License-Identifier: Apache-2.0
"""From what an importer understood to a manifest with golden vectors: the part that all layouts of generators share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_bundle import FORMAT_VERSION
from genai_bundle.builder.checkpoint import plain_request
from genai_bundle.builder.fast import fast_bound
from genai_bundle.importers import Assembled, Progress
from genai_bundle.importers.body import Body, Json, generation
from genai_bundle.importers.foreign import Section, dropped_lines, settle
from genai_bundle.importers.forms import Forms
from genai_bundle.importers.graphs import SourceGraph, pack_graphs
from genai_bundle.importers.plain import MARGIN, STEPS, Array, Run, engine_name, greedy, recorded
from genai_bundle.importers.portable import keep_states, with_portable
from genai_bundle.importers.speech import Hearing
from genai_bundle.importers.text import Text, digests

if TYPE_CHECKING:
    from genai_bundle.builder.options import BuildOptions

Values = Mapping[str, Array]


@dataclass(frozen=True)
class Before:
    """What a request runs once before it generates: an encoder, mostly.

    steps: from the prompt's ids, the value `ids`, to what the body reads. inputs: the manifest's beside the prompt.
    plain: the same by hand, from ids or sound and the source's graphs to the values and the ids to begin with.
    """

    graphs: Sequence[SourceGraph]
    steps: Sequence[Json]
    inputs: Json
    plain: Callable[[Any, Mapping[str, Run]], tuple[Values, Sequence[int]]]


@dataclass(frozen=True)
class Pipeline:
    """A generator as an importer understood it.

    vocabulary: ids are below it. room: the most tokens of prompt and answer together. longest: the most of a prompt.
    wraps: how the source runs a graph that the bundle has in another form, by name. hearing: the prompt is sound.
    """

    task: str
    body: Body
    text: Text
    generation: Json
    vocabulary: int
    room: int
    longest: int | None = None
    before: Before | None = None
    wraps: Mapping[str, Callable[[Run], Run]] = field(default_factory=dict)
    hearing: Hearing | None = None

    def inputs(self) -> Json:
        asked = self.hearing.inputs() if self.hearing else self.text.inputs()
        return asked | (self.before.inputs if self.before else {})

    def begin(self) -> list[Json]:
        """The steps before those that need ids or sound."""
        return [] if self.hearing else self.text.begin()

    def prompts(self) -> list[tuple[Json, Any]]:
        """Inputs for golden vectors, and the ids or the sound that they stand for."""
        if self.hearing:
            return [(inputs, sound) for inputs, sound in self.hearing.prompts()]
        longest = self.room - 1 if self.longest is None else self.longest
        return [(inputs, ids) for inputs, ids in self.text.prompts(self.vocabulary, longest)]


def assemble_pipeline(
    path: Path,
    found: Pipeline,
    configs: Sequence[Section],
    notes: Sequence[str],
    options: BuildOptions,
    tell: Progress,
    read: Sequence[Path] = (),
) -> Assembled:
    """Settle what the configurations say, run the source, write the manifest. read: other files that had a say.

    Raises SourceError: keys are not understood, or a graph cannot be run or may not be in a bundle.
    """
    heard = found.hearing.sections if found.hearing else ()
    dropped = settle([*configs, *heard], allow_lossy=options.allow_lossy)
    before = found.before
    steps, made = generation(found.body, found.text)
    notes = list(notes)
    graphs = [
        with_portable(graph, notes) for graph in (*(before.graphs if before else []), *found.body.graphs(), *made)
    ]
    entries, members, features = pack_graphs(graphs)
    tests, proof, kept = _ask(found, graphs, notes, tell)
    if any(one is not other for one, other in zip(graphs, kept, strict=True)):
        entries, members, features = pack_graphs(kept)
    files = [*read, *(graph.file for graph in graphs if graph.file)] + [
        path / config.file for config in (*configs, *heard)
    ]
    files += [path / name for name in found.text.assets.files] if found.text.assets else []
    inputs = found.inputs()
    if found.longest is not None and "ids" in inputs:
        inputs["ids"]["dims"] = [1, found.longest]
    manifest: Json = {
        "format": FORMAT_VERSION,
        "name": bundle_name(path),
        "task": found.task,
        "graphs": entries,
        "inputs": inputs,
        "outputs": found.text.outputs(),
        "state": keep_states(kept, found.body, entries),
        "steps": [*found.begin(), *(before.steps if before else []), *steps],
        **found.text.section(),
        "generation": found.generation,
        "source": source(path, files + external_files(graphs), proof, dropped),
        "tests": tests,
        **({"requires": features} if features else {}),
    }
    members |= found.text.members() | (found.hearing.members() if found.hearing else {})
    return Assembled(manifest, members, [*notes, *dropped_lines(dropped)])


def _ask(
    found: Pipeline, graphs: list[SourceGraph], notes: list[str], tell: Progress
) -> tuple[list[Json], Json, list[SourceGraph]]:
    """Golden vectors: what the source's graphs give for some prompts. And the graphs, without portable forms that
    differ."""
    from genai_bundle.builder.prove import source_graph  # late: brings the engines

    tell("running the source")
    before, body = found.before, found.body
    files = [*graphs, *(stage.prompt for stage in body.stages if stage.prompt)]
    plain = {graph.name: source_graph(graph.file, graph.runs) for graph in files if graph.file}
    runs = {name: found.wraps[name](run) if name in found.wraps else run for name, run in plain.items()}
    lowered = Forms.of(graphs, found, runs, source_graph)
    answers = []
    scored = found.text.assets is not None or not found.text.eos  # there is a `generate`, whose logits can be asked for
    for inputs, prompt in found.prompts():
        values, ids = before.plain(prompt, runs) if before else ({}, prompt)
        step, logits = recorded(body.plain(runs, values))
        answer = greedy(step, ids, found.text.eos, min(STEPS, found.room - len(ids)))
        scores = np.concatenate([rows.reshape(-1, rows.shape[-1]) for rows in logits])
        bound = {"fast": fast_bound(scores)} if scored else {}
        answers.append((inputs, lowered.check(prompt, answer, logits), bound))
    graphs = lowered.settled(graphs, notes)
    tests = []
    for inputs, answer, bound in answers:
        tokens = list(answer.tokens[: answer.sure])
        if tokens:
            asked = {**inputs, **plain_request(found.generation, len(tokens))}
            if not found.text.assets:
                del asked["stop"]
            tests.append({"in": asked, "out": {"tokens": [tokens]}, "compare": "tokens", **bound})
    checks = ["greedy tokens, cached steps", *lowered.checks()]
    return tests, {"reference": engine_name(), "steps": STEPS, "margin": MARGIN, "checks": checks}, graphs


def source(path: Path, files: Sequence[Path], proof: Json, dropped: Mapping[str, Sequence[str]]) -> Json:
    """The manifest's `source`."""
    found: Json = {"files": digests(path, files), "proof": proof}
    return found | ({"dropped": {file: list(keys) for file, keys in dropped.items()}} if dropped else {})


def external_files(graphs: Sequence[SourceGraph]) -> list[Path]:
    """The files that hold the graphs' weights."""
    found = set()
    for graph in graphs:
        for tensor in graph.model.graph.initializer:
            location = next((item.value for item in tensor.external_data if item.key == "location"), None)
            if graph.file and location:
                found.add(graph.file.parent / location)
    return sorted(found)


def bundle_name(path: Path) -> str:
    """A bundle's name from a folder's: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("-.") or "model"
