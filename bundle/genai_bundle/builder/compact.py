# SPDX-License-Identifier: Apache-2.0
"""The short forms of types that recipes use: `text?`, `i64[1,S] = 3`, `audio[N]@16000`, `text*`."""

from __future__ import annotations

import json
import re
from typing import Any

_FORM = re.compile(
    r"(?P<type>[a-z][a-z0-9]*)(?P<text>\*)?(\[(?P<dims>[^\]]*)\])?(@(?P<rate>[0-9]+))?(?P<optional>\?)?"
    r"(\s*=\s*(?P<default>.+))?",
    re.DOTALL,
)


def parse_type(text: str) -> dict[str, Any]:
    """The manifest's object for a type in short form.

    `f32[1,N]` is {type, dims}; a trailing `?` makes it optional, `@RATE` states samples a second, `= JSON` a default;
    `text*` is streamed text. Raises ValueError that says which part is not understood; what the parts may be is left
    to the manifest's own rules.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a type such as text?, i64[1,S] = 3, f32[1,T*], audio[N]@16000, text*")
    declared: dict[str, Any] = {"type": found["type"]}
    if found["dims"] is not None:
        declared["dims"] = [_dim(dim.strip(), text) for dim in found["dims"].split(",")]
    elif found["text"]:
        declared["dims"] = ["T*"]
    if found["rate"]:
        declared["rate"] = int(found["rate"])
    if found["optional"]:
        declared["optional"] = True
    if found["default"]:
        declared["default"] = _default(found["default"], text)
    return declared


def _dim(dim: str, text: str) -> int | str:
    if not dim:
        raise ValueError(f"{text!r} has an empty dimension; a scalar has no brackets")
    return int(dim) if dim.isdecimal() else dim


def _default(default: str, text: str) -> Any:
    try:
        return json.loads(default)
    except ValueError as error:
        raise ValueError(f"the default in {text!r} is not JSON ({error}); a text needs quotes") from error
