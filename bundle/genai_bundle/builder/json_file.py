# SPDX-License-Identifier: Apache-2.0
"""Read the small JSON files of a source folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genai_bundle.errors import SourceError


def read_object(path: Path, *, required: bool = False) -> dict[str, Any] | None:
    """The JSON object in a file; None when the file is absent and not `required`.

    Raises:
        SourceError: the file is absent though required, or holds anything but one JSON object.
    """
    if not path.is_file():
        if required:
            raise SourceError(f"{path.name} is missing", where=str(path.parent), hint="Download the whole checkpoint")
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SourceError(f"is not JSON: {error}", where=path.name) from error
    if not isinstance(value, dict):
        raise SourceError("is not a JSON object", where=path.name)
    return value
