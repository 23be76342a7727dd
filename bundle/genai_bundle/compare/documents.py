# SPDX-License-Identifier: Apache-2.0
"""Two JSON documents, key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from genai_bundle.names import at

Json = Any

_ABSENT = object()


def changes(before: Json, after: Json) -> list[Json]:
    """{path, change, before, after} for each value that is not the same, in the order of the paths.

    A list of plain values, such as token ids, is one value; a list of objects is compared item by item.
    """
    return list(_walk("", before, after))


def _walk(path: str, before: Json, after: Json) -> Iterator[Json]:
    if before is after or (type(before) is type(after) and before == after):
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from _walk(at(path, key), before.get(key, _ABSENT), after.get(key, _ABSENT))
    elif _objects(before) and _objects(after):
        for index in range(max(len(before), len(after))):
            sides = (one[index] if index < len(one) else _ABSENT for one in (before, after))
            yield from _walk(f"{path}[{index}]", *sides)
    elif before is _ABSENT:
        yield {"path": path, "change": "added", "after": after}
    elif after is _ABSENT:
        yield {"path": path, "change": "removed", "before": before}
    else:
        yield {"path": path, "change": "changed", "before": before, "after": after}


def _objects(value: Json) -> bool:
    return isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value)
