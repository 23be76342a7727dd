# SPDX-License-Identifier: Apache-2.0
"""The folder of another stack for a bundle: exported once, and kept in the user's cache folder.

It is keyed by the bundle's id and by the versions of what writes it, so nothing in it is ever out of date. It appears
complete or not at all; of two processes that export at once, one is too late and takes what the other wrote.
"""

from __future__ import annotations

from pathlib import Path

from genai_bundle import __version__
from genai_bundle.bundle import Bundle
from genai_bundle.errors import GenaiError, UsageError

from ..cache_folder import VARIABLE, cache_folder

PART = "exports"
DIGITS = 32
"""Of a bundle's id: no two bundles share as many, and folders' names stay short enough for every system."""


def exported(bundle: Bundle, target: str, versions: str = "") -> Path:
    """The folder, written now if it is not there yet. `versions`: of other packages that take part in it.

    Raises UsageError where the stack cannot run the bundle, or where there is no place for the folder.
    """
    from genai_bundle.exports import MARK, choose, write

    cache = cache_folder(PART)
    if cache is None:
        raise UsageError("there is no folder for the exported model", hint=f"Set {VARIABLE} to one that is writable")
    key = "-".join(filter(None, (bundle.id.rpartition(":")[2][:DIGITS], target, __version__, versions)))
    folder = cache / key
    if (folder / MARK).is_file():
        return folder
    writer = choose(target)
    plan = writer.plan(bundle, "auto")
    bundle.verify()
    try:
        write(bundle, writer, plan, folder)
    except GenaiError:
        if not (folder / MARK).is_file():
            raise
    return folder
