# SPDX-License-Identifier: Apache-2.0
"""A bundle from a Hugging Face checkpoint folder.

    read_checkpoint -> ask the model -> for each exporter: export -> adapters -> variants -> pack -> write and prove

The order is that of cost and blame: what is wrong with the folder is said before anything runs, and the target keeps
its old content until the new bundle has reproduced the model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle import FORMAT_VERSION
from genai_bundle.builder import kinds
from genai_bundle.builder.adapters.evidence import ask_all
from genai_bundle.builder.adapters.folder import Adapter, check_base, read_adapter
from genai_bundle.builder.checkpoint import Checkpoint, read_checkpoint
from genai_bundle.builder.exporters import HeadError
from genai_bundle.builder.options import BuildOptions
from genai_bundle.builder.report import Report
from genai_bundle.builder.storage.spool import Spool
from genai_bundle.errors import ProofError, SourceError, UsageError
from genai_bundle.writer import Source, write_bundle

if TYPE_CHECKING:
    from genai_bundle.builder.exporters import Export

Progress = Callable[[str], None]

HEAD = "head"

NEEDED = ("torch", "transformers", "onnxscript")


def build_checkpoint(
    source: Path, target: Path, options: BuildOptions | None = None, progress: Progress | None = None
) -> str:
    """Build the bundle file `target` from the checkpoint folder `source` and return the bundle's id.

    Args:
        progress: is told what is done next and, at the end, how close the bundle came.

    Raises:
        SourceError: the folder lacks something or holds something that cannot be built.
        UsageError: an option means nothing, the target exists and may not be replaced, or something is not installed.
        ProofError: no exporter's graphs compute what the model computes; nothing is written.
    """
    options, tell = options or BuildOptions(), progress or (lambda _: None)
    options.check()
    if target.exists() and not options.overwrite:
        raise UsageError("exists already", where=str(target), hint="Give --force (overwrite=True) to replace it")
    tell("reading the checkpoint")
    return build_from(read_checkpoint(source), target, options, tell)


def build_from(checkpoint: Checkpoint, target: Path, options: BuildOptions, tell: Progress) -> str:
    """The same from a checkpoint that has been read, whatever it was read from."""
    checkpoint = replace(checkpoint, heads=options.heads is not False)
    try:
        return _build(checkpoint, target, options, tell)
    except HeadError as error:
        if options.heads:
            raise
        Report.of(tell).note(f"built without the checkpoint's head for multi-token prediction: {error.message}")
    return build_from(checkpoint, target, replace(options, heads=False), tell)


def _build(checkpoint: Checkpoint, target: Path, options: BuildOptions, tell: Progress) -> str:
    """The same, with the checkpoint's head where that is wanted and there. Raises HeadError where it is not right."""
    kind = kinds.choose(checkpoint.config)
    exporters = _exporters(kind, options.exporter)
    adapters = [read_adapter(name, path) for name, path in options.adapters.items()]
    for adapter in adapters:
        check_base(adapter, checkpoint.tensors)
    tell("starting torch")  # late: seconds of imports that a wrong folder should not cost
    _check_known(checkpoint)
    check_installed(checkpoint.path)
    if adapters and find_spec("peft") is None:
        hint = 'Install it with: pip install "genai-bundle[adapters]"'
        raise UsageError("proving an adapter needs peft", where=str(adapters[0].path), hint=hint)
    evidence = None
    if not options.changes_weights:  # else what is asked is the model with the weights that the bundle gets
        tell("asking the model itself")
        evidence = ask_all(kind, checkpoint, adapters, tell)
        if options.heads and not evidence.head:
            raise _no_head()
    report = Report.of(tell)
    failures: list[SourceError | ProofError] = []
    for name, export in exporters.items():
        try:
            tell(f"exporting with {name}")
            with Spool(target.parent) as spool:
                made = export(checkpoint)
                return _build_with(made, checkpoint, adapters, kind, evidence, target, options, report, spool)
        except HeadError:
            raise
        except (SourceError, ProofError) as error:
            report.failed(name, error)
            failures.append(error)
    raise _all_failed(list(exporters), failures)


def _build_with(
    export: Export,
    checkpoint: Checkpoint,
    adapters: Sequence[Adapter],
    kind: kinds.Kind,
    evidence: kinds.Evidence | None,
    target: Path,
    options: BuildOptions,
    tell: Report,
    spool: Spool,
) -> str:
    """One exporter's graphs as a proved bundle."""
    from genai_bundle.builder.adapters.branches import add_branches
    from genai_bundle.builder.measure_fast import measure_fast
    from genai_bundle.builder.prove import provable, prove_tests
    from genai_bundle.builder.storage.store import store_weights
    from genai_bundle.builder.variants import with_variants
    from genai_bundle.builder.weights import pack

    if options.heads and HEAD not in export.graphs:
        raise _no_head()
    added = add_branches(export.graphs, adapters)
    text = options.perplexity_text()
    models, entries = with_variants(export.graphs, export.state, tell)
    stored = store_weights(models, entries, options, spool, tell, checkpoint.kept)
    answers = evidence
    if answers is None:
        tell("asking the model itself, with these weights")
        answers = ask_all(kind, replace(checkpoint, changed=stored.changed), adapters, tell)
    graphs, shards = pack(
        models, next(iter(export.graphs)) if export.graphs.keys() - {HEAD} == {"decoder"} else "model"
    )
    for name, tensors in added.models.items():
        packed, more = pack(tensors, f"adapter-{name}")
        graphs |= packed
        shards |= more
    document = kind.document(checkpoint, export, entries)
    manifest = {
        "format": FORMAT_VERSION,
        "name": _name(options.details.get("name") or checkpoint.path.resolve().name),
        **document,
        **({"adapters": added.entries} if adapters else {}),
        "source": {
            "exporter": {"name": export.exporter, "version": export.version},
            **tell.source(),
            "files": replace(checkpoint, members=tuple(sorted({*checkpoint.members, *answers.files}))).digests(),
            **({"adapters": {adapter.name: adapter.digests() for adapter in adapters}} if adapters else {}),
            "proof": {**answers.proof, "forms": provable(entries)},
            "weights": dict(stored.record),
            **_head(export, answers, tell),
            **_dropped(export, answers, checkpoint, tell),
        },
        "tests": list(answers.tests),
        **{key: value for key, value in options.details.items() if key != "name" and value},
    }

    def prove(path: Path) -> None:
        tell("proving logits")
        differences = answers.prove(path, None)
        tell("proving tokens")
        tell.tested(prove_tests(path))
        tell.figures |= measure_fast(path)
        tell.passed(differences)
        if stored.changed and answers.effect is not None:
            tell.figures |= answers.effect(text, tell)

    members: dict[str, Source] = {**graphs, **shards, **kind.members(checkpoint)}
    tell("writing")
    return write_bundle(target, manifest, members, overwrite=options.overwrite, before_commit=prove)


def _no_head() -> SourceError:
    hint = "Leave --draft out; docs/engine.md says which heads are built"
    message = "there is no head for multi-token prediction that transformers reads and this exporter makes"
    return SourceError(message, where="config.json", hint=hint)


def _head(export: Export, answers: kinds.Evidence, tell: Report) -> dict[str, Any]:
    """`draft` of the manifest's `source`, where a head of the checkpoint is the draft."""
    if HEAD not in export.graphs:
        return {}
    tell("the checkpoint's head for multi-token prediction is the draft")
    return {"draft": {"name": "the checkpoint's head for multi-token prediction", "proof": dict(answers.head)}}


def _exporters(kind: kinds.Kind, wanted: str | None) -> Mapping[str, Callable[[Checkpoint], Export]]:
    """All exporters of the kind, or the one that the user wants."""
    known = kind.exporters()
    if wanted is None:
        return known
    if wanted not in known:
        hint = f"Known: {', '.join(known)}"
        raise UsageError(f"no exporter for this kind of model is called {wanted!r}", where="--exporter", hint=hint)
    return {wanted: known[wanted]}


def _dropped(
    export: Export, answers: kinds.Evidence, checkpoint: Checkpoint, tell: Report
) -> dict[str, dict[str, list[str]]]:
    """`dropped` of the manifest's `source`: settings and tensors without a part in the bundle; many tensors of one
    module in one line."""
    found: dict[str, Counter[str]] = {}
    for name in export.dropped:
        module = ".".join(name.split(".")[:2])
        found.setdefault(checkpoint.tensors[name].file, Counter())[module] += 1
    lines = {
        file: [f"{module} ({count} tensors)" if count > 1 else module for module, count in sorted(counts.items())]
        for file, counts in sorted(found.items())
    }
    for file, modules in lines.items():
        tell.note(f"dropped, no part of the graph: {', '.join(modules)} ({file})")
    lines |= {file: list(settings) for file, settings in answers.dropped.items()}
    return {"dropped": lines} if lines else {}


def _all_failed(names: list[str], failures: list[SourceError | ProofError]) -> SourceError | ProofError:
    """One error for all exporters; with one of them, its own."""
    first = failures[0]
    if len(failures) > 1:
        first.message = "; ".join(f"{name}: {error.message}" for name, error in zip(names, failures, strict=True))
    return first


def _check_known(checkpoint: Checkpoint) -> None:
    """Ask transformers' own table, which it has without torch too. Where it is not installed, that is said next."""
    if find_spec("transformers") is None:
        return
    from genai_bundle.builder.exporters.quiet import quiet

    with quiet():
        import transformers
    kind = checkpoint.config["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        code = "; its own code (auto_map) is not run" if checkpoint.config.get("auto_map") else ""
        raise SourceError(
            f"model_type is {kind!r}, which transformers {transformers.__version__} does not know{code}",
            where="config.json", hint="A newer transformers may know it",
        )  # fmt: skip


def check_installed(source: Path, *more: str) -> None:
    """Asked once the folder is known to be good: its faults matter whatever is installed."""
    missing = [name for name in (*NEEDED, *more) if find_spec(name) is None]
    if missing:
        hint = 'Install them with: pip install "genai-bundle[build]"'
        raise UsageError(f"building from a checkpoint needs {', '.join(missing)}", where=str(source), hint=hint)


def _name(folder: str) -> str:
    """A bundle's name from a folder's: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-.") or "model"
