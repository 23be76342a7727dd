# SPDX-License-Identifier: Apache-2.0
"""Tokenizers and chat templates of two bundles."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

from genai_bundle.compare.documents import changes

if TYPE_CHECKING:
    from genai_bundle.bundle import Bundle

Json = Any

LISTS = ("vocab", "merges")
"""Parts of a tokenizer's model that are counted, and not shown key by key."""


def tokenizer_changes(first: Bundle, second: Bundle) -> dict[str, Json]:
    """added, removed: tokens with their ids. renumbered: [id before, id after]. merges: counts. settings: all else."""
    raw = [_member(bundle, "tokenizer") for bundle in (first, second)]
    if raw[0] == raw[1] or None in raw:
        return {}
    old, new = (json.loads(one or b"{}") for one in raw)
    before, after = _vocabulary(old), _vocabulary(new)
    found: dict[str, Json] = {
        "added": {token: after[token] for token in sorted({*after} - {*before})},
        "removed": {token: before[token] for token in sorted({*before} - {*after})},
        "renumbered": {t: [before[t], after[t]] for t in before if t in after and before[t] != after[t]},
    }
    merges = [list(map(_joined, one.get("model", {}).get("merges") or ())) for one in (old, new)]
    if merges[0] != merges[1]:
        gone, come = {*merges[0]} - {*merges[1]}, {*merges[1]} - {*merges[0]}
        found["merges"] = {"added": len(come), "removed": len(gone), "reordered": not gone and not come}
    found["settings"] = changes(_settings(old), _settings(new))
    return {key: value for key, value in found.items() if value}


def template_changes(first: Bundle, second: Bundle) -> list[str]:
    """The lines of a unified diff of the chat templates."""
    before, after = ((_member(bundle, "template") or b"").decode().splitlines() for bundle in (first, second))
    names = [getattr(bundle.manifest.text, "template", None) or "none" for bundle in (first, second)]
    return list(difflib.unified_diff(before, after, names[0], names[1], lineterm=""))


def _member(bundle: Bundle, key: str) -> bytes | None:
    path = getattr(bundle.manifest.text, key, None)
    return bundle.read(path) if path is not None else None


def _vocabulary(tokenizer: Json) -> dict[str, int]:
    """{token: id}; a unigram model lists its tokens, [token, score] each, in the order of their ids."""
    vocab = tokenizer.get("model", {}).get("vocab") or {}
    found = dict(vocab) if isinstance(vocab, dict) else {item[0]: index for index, item in enumerate(vocab)}
    return found | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}


def _joined(merge: Json) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _settings(tokenizer: Json) -> Json:
    model = {key: value for key, value in (tokenizer.get("model") or {}).items() if key not in LISTS}
    return {**tokenizer, "model": model}
