# SPDX-License-Identifier: Apache-2.0
"""What the source model answers alone and with each adapter, as one evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genai_bundle.builder.adapters.folder import Adapter
from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.kinds import Evidence, Kind
from genai_bundle.records import ADAPTER


def ask_all(kind: Kind, checkpoint: Checkpoint, adapters: Sequence[Adapter], tell: Callable[[str], None]) -> Evidence:
    """Ask the model, and then the model that PEFT makes of it and each adapter."""
    alone = kind.ask(checkpoint)
    if not adapters:
        return alone
    found: dict[str, Evidence] = {}
    for adapter in adapters:
        tell(f"asking the model with the adapter {adapter.name}")
        found[adapter.name] = kind.ask(replace(checkpoint, adapter=adapter))
    tests = [*alone.tests, *(_named(test, name) for name, evidence in found.items() for test in evidence.tests)]

    def prove(path: Path, backend: str | None) -> Mapping[str, float]:
        differences = dict(alone.prove(path, backend))
        for name, evidence in found.items():
            for variant, difference in evidence.prove(path, backend).items():
                differences[f"{variant} with {name}"] = difference
        return differences

    return Evidence(tests, {**alone.proof, "adapters": _proofs(found, checkpoint)}, prove, head=alone.head)


def _named(test: Mapping[str, Any], adapter: str) -> dict[str, Any]:
    return {**test, "in": {**test["in"], ADAPTER: adapter}}


def _proofs(found: Mapping[str, Evidence], checkpoint: Checkpoint) -> dict[str, Any]:
    from genai_bundle.builder.adapters import merged
    from genai_bundle.builder.source_model import is_large

    applied = merged.name(large=is_large(checkpoint))
    return {
        name: {**evidence.proof, "reference": f"{evidence.proof['reference']}, {applied}"}
        for name, evidence in found.items()
    }
