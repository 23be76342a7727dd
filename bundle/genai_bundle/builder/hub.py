# SPDX-License-Identifier: Apache-2.0
"""A repository of the Hugging Face hub by its name, where the user's own cache holds it. Nothing is downloaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from genai_bundle.errors import UsageError

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")


def is_repository(source: Path) -> bool:
    """Whether `source`, which does not exist, reads like `org/name`."""
    return _REPOSITORY.fullmatch(source.as_posix()) is not None


def cached_snapshot(name: str) -> Path:
    """The folder in the cache that holds the main branch of the repository `org/name`.

    The cache's layout is documented: `models--ORG--NAME/refs/main` names the commit, `snapshots/COMMIT` holds its files
    (huggingface.co/docs/huggingface_hub, "Understand caching").

    Raises:
        UsageError: the cache holds no such snapshot.
    """
    folder = _cache() / f"models--{name.replace('/', '--')}"
    reference = folder / "refs" / "main"
    if reference.is_file():
        snapshot = folder / "snapshots" / reference.read_text(encoding="utf-8").strip()
        if snapshot.is_dir():
            return snapshot
    raise UsageError(
        f"there is no such folder, and no such repository in the Hugging Face cache {_cache()}", where=name,
        hint=f"Builds use no network. Download it first: hf download {name}",
    )  # fmt: skip


def _cache() -> Path:
    """Where huggingface_hub keeps its files, by the environment variables that it reads."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{shared}/huggingface").expanduser() / "hub"
