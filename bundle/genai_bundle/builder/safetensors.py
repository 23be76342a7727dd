# SPDX-License-Identifier: Apache-2.0
"""Safetensors files as byte ranges of a mapping.

The `safetensors` library hands out tensors; the builder needs to know *where* their bytes lie, so that a weight goes
from the checkpoint's mapping to the bundle without a copy of its own. The layout is short: eight bytes with the
header's length, a JSON header with dtype, shape and the range of each tensor, then the data
(github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from genai_bundle.errors import SourceError

HEADER_LIMIT = 100_000_000
"""Bytes. The library's own limit: a longer header is an attack on the reader's memory or not a safetensors file."""

ITEM_SIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of one element, by the format's name of its dtype."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file: `data` is a read-only view of the mapping, row-major, little-endian."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name, in the header's order.

    Raises:
        SourceError: the file is missing, cut short, or its header does not describe exactly the bytes that follow.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 8:
                raise SourceError(f"holds {size} bytes, too few for a safetensors header", where=path.name)
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", where=path.name) from error
    length = int.from_bytes(view[:8], "little")
    if length > min(HEADER_LIMIT, size - 8):
        raise SourceError(
            f"states a header of {length} bytes, but {size - 8} bytes follow", where=path.name,
            hint="The file is cut short or is no safetensors file; download it again",
        )  # fmt: skip
    header = _parse_header(bytes(view[8 : 8 + length]), path.name)
    data = view[8 + length :]
    tensors = {name: _tensor(name, entry, data, path.name) for name, entry in header.items()}
    _check_cover(header, len(data), path.name)
    return tensors


def _parse_header(raw: bytes, where: str) -> dict[str, Any]:
    """The header without its `__metadata__`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise SourceError(f"the header names '{twice}' twice", where=where)
        return found

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SourceError(f"the header is not JSON: {error}", where=where, hint="Download the file again") from error
    if not isinstance(header, dict):
        raise SourceError("the header is not a JSON object", where=where)
    header.pop("__metadata__", None)
    return header


def _tensor(name: str, entry: Any, data: memoryview, file: str) -> StoredTensor:
    where = f"{file}: {name}"
    if not isinstance(entry, Mapping) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise SourceError("the header's entry lacks dtype, shape or data_offsets", where=where)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEM_SIZE:
        raise SourceError(f"has the unknown dtype {dtype!r}", where=where)
    if not _naturals(shape):
        raise SourceError(f"has the shape {shape!r}, expected a list of lengths", where=where)
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise SourceError(f"has the data_offsets {offsets!r}, expected [begin, end]", where=where)
    begin, end = offsets
    if end > len(data):
        raise SourceError(
            f"ends at byte {end} of the data, but the file holds {len(data)}", where=where,
            hint="The file is cut short; download it again",
        )  # fmt: skip
    expected = prod(shape) * ITEM_SIZE[dtype]
    if end - begin != expected:
        raise SourceError(f"covers {end - begin} bytes, but {dtype} {shape} takes {expected}", where=where)
    return StoredTensor(name, file, dtype, tuple(shape), data[begin:end])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_cover(header: Mapping[str, Any], size: int, where: str) -> None:
    """The ranges follow each other without a hole or an overlap, up to the end of the file."""
    position = 0
    for name, (begin, end) in sorted(((name, entry["data_offsets"]) for name, entry in header.items()), key=_range):
        if begin != position:
            problem = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            raise SourceError(f"begins at byte {begin} of the data and {problem}", where=f"{where}: {name}")
        position = end
    if position != size:
        raise SourceError(f"holds {size - position} bytes after its last tensor", where=where)


def _range(item: tuple[str, list[int]]) -> tuple[int, int]:
    return item[1][0], item[1][1]
