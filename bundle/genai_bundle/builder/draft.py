# SPDX-License-Identifier: Apache-2.0
"""A draft beside a model (spec/pipeline.md, Drafts): two bundles, each built and proved by itself, become one.

The draft's graphs go in as they were proved, under other names and with their weights in shards of their own. What the
bundle says of text, inputs and results is the model's alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from genai_bundle.builder.options import BuildOptions
from genai_bundle.builder.report import Report
from genai_bundle.bundle import Bundle, open_bundle
from genai_bundle.errors import SourceError, UsageError
from genai_bundle.layout import is_weights
from genai_bundle.records import WEIGHTS_FOLDER
from genai_bundle.steps import DRAWN
from genai_bundle.writer import Shard, Source, write_bundle

DRAFT = "draft"
WHERE = "--draft"

SEGMENTS = ("normalizer", "pre_tokenizer")
"""Parts of a tokenizer.json, beside its model, that decide which ids a text has."""


def build_with_draft(source: Path, target: Path, options: BuildOptions, tell: Report) -> str:
    """Build `source` with `options.draft` as its draft, and return the bundle's id.

    Raises:
        UsageError: one of the two does not continue a text with its graphs alone.
        SourceError: their tokenizers differ.
        Whatever building each of them raises.
    """
    from genai_bundle.builder.build import build

    assert options.draft is not None
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}", where=str(target), hint="Make it first")
    _check_before(source, options.draft)
    plain = replace(options, draft=None, heads=False, overwrite=False)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        whole, small = Path(place) / "model.genai", Path(place) / "draft.genai"
        build(source, whole, plain, tell)
        aside = Report(lambda line: tell(f"draft: {line}"))
        build(options.draft, small, replace(plain, adapters={}, details={}, perplexity=None), aside)
        tell.proved |= {f"{DRAFT}, {form}": gap for form, gap in aside.proved.items()}
        tell.notes += [f"{DRAFT}: {note}" for note in aside.notes]
        tell("joining both")
        with open_bundle(whole, check=False) as first, open_bundle(small, check=False) as second:
            return join(first, second, target, overwrite=options.overwrite)


def join(model: Bundle, draft: Bundle, target: Path, *, overwrite: bool = False) -> str:
    """Write `model` with the graphs of `draft` as the draft of its `generate`; its golden vectors are run again."""
    check_tokenizers(_tokenizer(model), _tokenizer(draft))
    document, other = _document(model), _document(draft)
    step, body = _generate(document), _generate(other)
    names = _names(other, body)
    if any(following != DRAWN for following in _next(body).values()):
        raise _no_draft("it carries more than the new token from one step to the next")
    renamed = Renaming(names, {name: f"{DRAFT}_{name}" for name in other.get("state", {})}, draft)
    rename_ids = {_ids(body): _ids(step)}
    step[DRAFT] = {"do": [renamed.step(one, rename_ids) for one in body["do"]], "logits": body["logits"]}
    document["graphs"] |= {names[name]: renamed.graph(entry) for name, entry in other["graphs"].items()}
    document.setdefault("state", {}).update(
        {renamed.states[name]: renamed.state(entry) for name, entry in other.get("state", {}).items()}
    )
    if requires := {*document.get("requires", ()), *other.get("requires", ())}:
        document["requires"] = sorted(requires)
    document.setdefault("source", {})[DRAFT] = {"name": other["name"], **other.get("source", {})}
    members: dict[str, Source] = {path: _whole(model, path) for path in model.manifest.files}
    members |= dict(renamed.members())
    return write_bundle(target, document, members, overwrite=overwrite, before_commit=_prove)


def check_tokenizers(one: bytes, other: bytes) -> None:
    """Both give each text the same ids. Raises SourceError, which says what differs."""
    from tokenizers import Tokenizer

    first, second = (Tokenizer.from_buffer(raw).get_vocab(with_added_tokens=True) for raw in (one, other))
    for token in sorted(first.keys() | second.keys(), key=lambda token: first.get(token, second.get(token, 0))):
        if first.get(token) != second.get(token):
            ids = (f"the id {found[token]}" if token in found else "no id" for found in (first, second))
            raise _other_tokenizer(f"{token!r} has {' in the model, and '.join(ids)} in the draft")
    mine, theirs = json.loads(one), json.loads(other)
    for part in (*SEGMENTS, "model"):
        if mine.get(part) != theirs.get(part):
            raise _other_tokenizer(f"they differ in their {part!r}")


@dataclass
class Renaming:
    """The draft's graphs, states and files under the names that they get beside another model's."""

    graphs: Mapping[str, str]
    states: Mapping[str, str]
    bundle: Bundle

    def step(self, step: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
        feeds = {}
        for port, name in step.get("in", {}).items():
            state, dot, field = name.partition(".")
            feeds[port] = f"{self.states[state]}.{field}" if dot else ids.get(name, name)
        return {**step, "run": self.graphs[step["run"]], "in": feeds}

    def graph(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        changed = {**entry, "file": self.file(entry["file"])}
        if "variants" in entry:
            changed["variants"] = [
                {
                    **one,
                    "file": self.file(one["file"]),
                    **({"state": {self.states[name]: s for name, s in one["state"].items()}} if "state" in one else {}),
                }
                for one in entry["variants"]
            ]
        return changed

    def state(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        of = {"of": self.states[entry["of"]]} if "of" in entry else {}
        return {**entry, "graph": self.graphs[entry["graph"]], **of}

    def file(self, path: str) -> str:
        """`decoder.ort-cpu.onnx` of the graph `decoder` becomes `draft.ort-cpu.onnx`."""
        known = PurePosixPath(path)
        for old, new in self.graphs.items():
            if known.name.startswith(f"{old}."):
                return str(known.with_name(new + known.name[len(old) :]))
        return str(known.with_name(f"{DRAFT}-{known.name}"))

    def members(self) -> Iterator[tuple[str, Source]]:
        """The graphs and shards, under their new names."""
        shards = sorted(path for path in self.bundle.manifest.files if is_weights(path))
        moved = {path: f"{WEIGHTS_FOLDER}{DRAFT}-{index:02}.bin" for index, path in enumerate(shards)}
        for path, new in moved.items():
            yield new, _whole(self.bundle, path)
        for entry in self.bundle.manifest.graphs.values():
            for path in (entry.file, *(variant.file for variant in entry.variants)):
                yield self.file(path), _relocated(self.bundle.read(path), moved)


def _relocated(graph: bytes, moved: Mapping[str, str]) -> bytes:
    """The graph with its weights in other members, at the same places."""
    model = onnx.ModelProto.FromString(graph)
    for tensor in model.graph.initializer:
        for item in tensor.external_data:
            if item.key == "location":
                item.value = moved[item.value]
    return bytes(model.SerializeToString(deterministic=True))


def _prove(path: Path) -> None:
    from genai_bundle.builder.prove import prove_tests

    prove_tests(path)


def _whole(bundle: Bundle, path: str) -> Shard:
    view = bundle.view(path)
    return Shard(len(view), [(0, lambda: view)])


def _document(bundle: Bundle) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(bundle.manifest.raw)
    del document["files"]
    return document


def _generate(document: Mapping[str, Any]) -> dict[str, Any]:
    """The outermost `generate` that ends the steps."""
    last = document["steps"][-1] if document["steps"] else {}
    if "generate" not in last or DRAWN not in _next(last["generate"]).values():
        raise _no_draft(f"{document['name']!r} does not end with a `generate`")
    found: dict[str, Any] = last["generate"]
    return found


def _next(generate: Mapping[str, Any]) -> dict[str, str]:
    return {name: one if isinstance(one, str) else one[1] for name, one in generate["carry"].items()}


def _ids(generate: Mapping[str, Any]) -> str:
    return next(name for name, following in _next(generate).items() if following == DRAWN)


def _names(document: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, str]:
    """New names of the draft's graphs, all of which its body has to run."""
    targets = [step.get("run", "@") for step in body["do"]]
    if any("@" in target for target in targets) or set(targets) != document["graphs"].keys():
        raise _no_draft("it does more than run its graphs for each token")
    return {name: DRAFT if len(targets) == 1 else f"{DRAFT}_{name}" for name in document["graphs"]}


def _no_draft(reason: str) -> UsageError:
    return UsageError(f"a draft and its model continue a text token by token: {reason}", where=WHERE)


def _other_tokenizer(difference: str) -> SourceError:
    hint = "A draft is a smaller model of the same family, which has the same tokenizer"
    return SourceError(f"the draft has another tokenizer: {difference}", where=WHERE, hint=hint)


def _tokenizer(bundle: Bundle) -> bytes:
    if bundle.manifest.text is None:
        raise _no_draft(f"{bundle.manifest.name!r} has no tokenizer")
    return bundle.read(bundle.manifest.text.tokenizer)


def _check_before(source: Path, draft: Path) -> None:
    """What can be known before anything is built; files are compared again as the bundles have them."""
    files = [path / "tokenizer.json" for path in (source, draft)]
    if all(file.is_file() for file in files):
        check_tokenizers(*(file.read_bytes() for file in files))
