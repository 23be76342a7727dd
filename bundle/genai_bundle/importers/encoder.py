# SPDX-License-Identifier: Apache-2.0
"""Encoders of text: one graph from ids to a vector for each token, or, with more after it, for the whole text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genai_bundle import FORMAT_VERSION
from genai_bundle.importers import Assembled, Progress
from genai_bundle.importers.assembling import bundle_name, external_files, source
from genai_bundle.importers.foreign import Section, dropped_lines, settle
from genai_bundle.importers.forms import agreed
from genai_bundle.importers.graphs import SourceGraph, made_graph, pack_graphs
from genai_bundle.importers.plain import Array, Run, engine_name, shaped
from genai_bundle.importers.portable import with_portable
from genai_bundle.importers.text import Text, check_vocabulary, read_text

if TYPE_CHECKING:
    from genai_bundle.builder.options import BuildOptions

Json = dict[str, Any]

UNKNOWN = 1 << 40
"""Stands for a number that the folder does not state."""

TOLERANCE = {"abs": 1e-4, "rel": 1e-3}

ROLES = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "types", "position_ids": "positions"}

PREPARE = (
    "prepare (int64[1,N] ids) => (int64[1,N] mask, int64[1,N] types, int64[1,N] positions)"
    " <int64 zero = {0}, int64 step = {1}, int64[1] row = {0}, int64[1] last = {1}> {"
    "  size = Shape (ids)  mask = ConstantOfShape <value: tensor = int64[1] {1}> (size)"
    "  types = ConstantOfShape <value: tensor = int64[1] {0}> (size)"
    "  many = Gather (size, step)  line = Range (zero, many, step)  positions = Unsqueeze (line, row) }"
)


class Encoder:
    """An encoder's graph and what it is fed: one text, so everything is seen and of the first kind."""

    def __init__(self, graph: SourceGraph) -> None:
        self.graph = graph
        ports = graph.ports
        unknown = [name for name in ports.inputs if name not in ROLES]
        if unknown or "input_ids" not in ports.inputs:
            raise graph.error(f"its input {(unknown or ['input_ids'])[0]!r} is missing or has a role not understood")
        self.feeds = {port: value for port, value in ROLES.items() if port in ports.inputs}

    def steps(self, out: Mapping[str, str]) -> list[Json]:
        """From the value `text` to the named results, by way of `ids` and what else the graph is told."""
        told = {value: value for value in [*self.feeds.values(), "mask"] if value != "ids"}
        return [
            {"run": "text.encode@1", "in": {"text": "text"}, "out": {"ids": "ids"}},
            {"run": "prepare", "in": {"ids": "ids"}, "out": told},
            {"run": self.graph.name, "in": dict(self.feeds), "out": dict(out)},
        ]

    def graphs(self) -> list[SourceGraph]:
        return [made_graph("prepare", PREPARE), self.graph]

    def plain(self, ids: Sequence[int], run: Run) -> Mapping[str, Array]:
        known = {
            "ids": np.array([ids]), "mask": np.ones((1, len(ids))), "types": np.zeros((1, len(ids))),
            "positions": np.arange(len(ids))[None],
        }  # fmt: skip
        ports = self.graph.ports.inputs
        outputs: Mapping[str, Array] = run(
            {port: shaped(known[name], ports[port]) for port, name in self.feeds.items()}
        )
        return outputs


@dataclass(frozen=True)
class Embedding:
    """A pipeline from `text` to `embedding`.

    steps: all of them. output: the type of `embedding`. plain: the same by hand, from ids and the source's graph.
    """

    encoder: Encoder
    text: Text
    graphs: Sequence[SourceGraph]
    steps: Sequence[Json]
    output: Json
    plain: Callable[[Sequence[int], Run], Array]


def assemble_encoder(
    path: Path,
    graph: SourceGraph,
    config: Mapping[str, Any],
    notes: Sequence[str],
    options: BuildOptions,
    tell: Progress,
) -> Assembled:
    """A folder with an encoder alone: a vector for each token. Raises SourceError."""
    encoder = Encoder(graph)
    wanted = token_vectors(graph)
    text = read_text(path, (), (config, {}))
    steps = [*encoder.steps({wanted: "hidden"}), {"emit": {"embedding": "hidden"}}]
    output = {"type": "f32", "dims": [1, "N", width(graph, wanted)]}

    def plain(ids: Sequence[int], run: Run) -> Array:
        return encoder.plain(ids, run)[wanted].astype(np.float32)

    found = Embedding(encoder, text, encoder.graphs(), steps, output, plain)
    return assemble_embedding(path, found, config, [], [path / "config.json"], notes, options, tell)


def token_vectors(graph: SourceGraph) -> str:
    """The port with a vector for each token."""
    for name in ("last_hidden_state", "token_embeddings"):
        if name in graph.ports.outputs:
            return name
    raise graph.error(
        f"gives {', '.join(graph.ports.outputs)}: neither logits with a cache nor last_hidden_state",
        "Write a recipe for it: `genai-bundle build GRAPH --draft-recipe` prints a beginning",
    )


def width(graph: SourceGraph, port: str) -> int:
    """How long a vector is."""
    last = graph.ports.outputs[port].dims[-1]
    if not isinstance(last, int):
        raise graph.error(f"the last dim of its output {port!r} is open")
    return last


def assemble_embedding(
    path: Path,
    found: Embedding,
    config: Mapping[str, Any],
    configs: Sequence[Section],
    read: Sequence[Path],
    notes: Sequence[str],
    options: BuildOptions,
    tell: Progress,
) -> Assembled:
    """The manifest, with what the source gives as golden vectors. configs: strictly read files; read: others."""
    from genai_bundle.builder.prove import source_graph  # late: brings the engines

    file, text = found.encoder.graph.file, found.text
    if text.assets is None or file is None:
        raise found.encoder.graph.error("needs a tokenizer, and the folder has no tokenizer.json")
    rows, room = config.get("vocab_size"), config.get("max_position_embeddings")
    check_vocabulary(text, rows if type(rows) is int else UNKNOWN, "vocab_size in config.json")
    dropped = settle(configs, allow_lossy=options.allow_lossy)
    notes = list(notes)
    graphs = [with_portable(graph, notes) for graph in found.graphs]
    pack_graphs(graphs)  # what a bundle may not hold is said before anything runs
    tell("running the source")
    run = source_graph(file)
    asked = [(inputs, ids) for inputs, ids in text.prompts(UNKNOWN, room if type(room) is int else UNKNOWN)]

    def vectors(graph: Run) -> list[Array]:
        return [found.plain(ids, graph) for _, ids in asked]

    graphs = [agreed(graph, run, source_graph, vectors, notes) for graph in graphs]
    entries, members, features = pack_graphs(graphs)
    tests = [
        {
            "in": {"text": inputs["prompt"]},
            "out": {"embedding": vector.tolist()},
            "compare": dict(TOLERANCE),
        }
        for (inputs, _), vector in zip(asked, vectors(run), strict=True)
    ]
    proof = {"reference": engine_name(), "max_abs": TOLERANCE["abs"], "checks": ["embeddings of whole texts"]}
    files = [*read, file, *external_files(found.graphs), *(path / name for name in text.assets.files)]
    manifest = {
        "format": FORMAT_VERSION,
        "name": bundle_name(path),
        "task": "feature-extraction",
        "graphs": entries,
        "inputs": {"text": {"type": "text", "description": "The text to describe."}},
        "outputs": {"embedding": found.output},
        "steps": list(found.steps),
        "text": {"tokenizer": "tokenizer.json", "eos": [], "special": dict(text.assets.special)},
        "source": source(path, files, proof, dropped),
        "tests": tests,
        **({"requires": features} if features else {}),
    }
    return Assembled(manifest, {**members, "tokenizer.json": text.assets.tokenizer}, [*notes, *dropped_lines(dropped)])
