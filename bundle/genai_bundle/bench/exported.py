# SPDX-License-Identifier: Apache-2.0
"""A bundle as another stack's folder, by ``export``'s own code."""

from __future__ import annotations

from pathlib import Path

from genai_bundle.bundle import open_bundle
from genai_bundle.exports import choose, write


def export(bundle: Path, folder: Path, to: str) -> Path:
    """Write the folder, where it is not there yet, and return it. UsageError for what that stack cannot run."""
    if not folder.exists():
        target = choose(to)
        with open_bundle(bundle) as opened:
            write(opened, target, target.plan(opened, "auto"), folder)
    return folder
