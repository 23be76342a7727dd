# SPDX-License-Identifier: Apache-2.0
"""Where the runner keeps what it can make again: compiled models, what engines were found to compute.

Everything there is a matter of speed. It is one user's, on one machine, and may be deleted at any time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "GENAI_CACHE_DIR"
NAME = "genai-bundle"


def cache_folder(part: str) -> Path | None:
    """The folder for one kind of cached thing, made if need be; None where nothing can be written.

    `GENAI_CACHE_DIR` names the folder above it; without it that is `genai-bundle` in the user's cache folder of this
    system (XDG_CACHE_HOME or ~/.cache; ~/Library/Caches on macOS; LOCALAPPDATA on Windows).
    """
    try:
        folder = _base() / part
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # a read-only home, or none at all
        return None
    return folder if os.access(folder, os.W_OK) else None


def _base() -> Path:
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    if sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA")
        return (Path(home) if home else Path.home() / "AppData" / "Local") / NAME / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / NAME
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache") / NAME
