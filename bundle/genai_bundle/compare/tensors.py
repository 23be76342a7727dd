# SPDX-License-Identifier: Apache-2.0
"""Weights of two bundles by the names of initializers: the same bytes, the same bytes elsewhere, or how far apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    import onnx

    from genai_bundle.bundle import Bundle

Json = Any
Progress = Callable[[int, int], None]

CHUNK = 1 << 20
"""Elements at a time, in float64 while they are compared: some tens of MiB however large a tensor is."""

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
BYTES = 4 << 20


@dataclass(frozen=True)
class Place:
    """A tensor's bytes: `length` of them at `offset` of a shard, or `inside` the graph."""

    dtype: int
    shape: tuple[int, ...]
    member: str
    offset: int
    length: int
    inside: bytes = b""


@dataclass
class Tensors:
    """changed: what to say of each tensor that is not the same. same: how many are. touched: graphs with others."""

    changed: list[Json] = field(default_factory=list)
    same: int = 0
    touched: set[str] = field(default_factory=set)


def compare_tensors(
    first: Bundle, second: Bundle, graphs: Sequence[tuple[str, str, str]], progress: Progress | None = None
) -> Tensors:
    """Compare the initializers of graph files in pairs (file of `first`, file of `second`, role).

    Tensors that several graphs share are compared, and told, once.
    """
    pairs: dict[tuple[str, Place | None, Place | None], list[str]] = {}
    for before, after, role in graphs:
        had, has = places(first.graph(before)), places(second.graph(after))
        for name in dict.fromkeys((*had, *has)):
            pairs.setdefault((name, had.get(name), has.get(name)), []).append(role)
    total = sum(old.length for _, old, new in pairs if old and new and _needs_reading(first, second, old, new))
    found, done = Tensors(), 0
    for (name, old, new), roles in pairs.items():
        said = _compare(first, second, old, new)
        if said["change"] == "same":
            found.same += 1
        else:
            found.changed.append({"name": name, "graphs": roles, **said})
            found.touched.update(roles)
        if old and new and _needs_reading(first, second, old, new):
            done += old.length
            if progress is not None:
                progress(done, total)
    return found


def places(model: onnx.ModelProto) -> dict[str, Place]:
    """The initializers of a graph that has passed `sanitize`."""
    found = {}
    for tensor in model.graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        shape = tuple(tensor.dims)
        if entry:
            place = Place(tensor.data_type, shape, entry["location"], int(entry["offset"]), int(entry["length"]))
        else:
            raw = _inside(tensor)
            place = Place(tensor.data_type, shape, "", 0, len(raw), raw)
        found[tensor.name] = place
    return found


def _inside(tensor: onnx.TensorProto) -> bytes:
    """The bytes of a tensor that lies in the graph, however they are spelt."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    if tensor.data_type == TensorProto.STRING:
        return b"\0".join(tensor.string_data)
    return bytes(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def _needs_reading(first: Bundle, second: Bundle, old: Place, new: Place) -> bool:
    """Whether the digests leave open that these are the same bytes."""
    if not old.member or not new.member or (old.offset, old.length) != (new.offset, new.length):
        return True
    return first.manifest.files[old.member].sha256 != second.manifest.files[new.member].sha256


def _compare(first: Bundle, second: Bundle, old: Place | None, new: Place | None) -> dict[str, Json]:
    if old is None or new is None:
        assert old or new
        return {"change": "removed", "before": _form(old)} if old else {"change": "added", "after": _form(new)}
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return {"change": "retyped", "before": _form(old), "after": _form(new)}
    moved = old.member != new.member or old.offset != new.offset
    if not _needs_reading(first, second, old, new) or _equal(first, second, old, new):
        return {"change": "moved" if moved else "same", "before": _where(old), "after": _where(new)}
    said = {"change": "changed", "before": _form(old)}
    if old.dtype not in FLOATS:
        return said | {"bytes": _bytes_apart(first, second, old, new)}
    return said | _distance(first, second, old, new)


def _form(place: Place | None) -> str:
    if place is None:
        return ""
    return f"{TensorProto.DataType.Name(place.dtype).lower()}[{','.join(map(str, place.shape))}]"


def _where(place: Place) -> str:
    return f"{place.member}, byte {place.offset}" if place.member else "inside the graph"


def _view(bundle: Bundle, place: Place) -> memoryview:
    if not place.member:
        return memoryview(place.inside)
    return bundle.view(place.member)[place.offset : place.offset + place.length]


def _equal(first: Bundle, second: Bundle, old: Place, new: Place) -> bool:
    if old.length != new.length:
        return False
    a, b = _view(first, old), _view(second, new)
    return all(a[start : start + BYTES] == b[start : start + BYTES] for start in range(0, old.length, BYTES))


def _bytes_apart(first: Bundle, second: Bundle, old: Place, new: Place) -> Json:
    """How many bytes differ, of how many; quantised weights have no distance by themselves."""
    a, b = (np.frombuffer(_view(bundle, place), np.uint8) for bundle, place in ((first, old), (second, new)))
    size = min(len(a), len(b))
    apart = sum(int(np.count_nonzero(a[i : i + BYTES] != b[i : i + BYTES])) for i in range(0, size, BYTES))
    return {"differ": apart + abs(len(a) - len(b)), "of": max(len(a), len(b))}


def _distance(first: Bundle, second: Bundle, old: Place, new: Place) -> dict[str, Json]:
    """max_abs: the largest difference of an element. rel: the norm of the difference, over that of `first`'s tensor."""
    dtype = helper.tensor_dtype_to_np_dtype(old.dtype)
    a, b = (np.frombuffer(_view(bundle, place), dtype) for bundle, place in ((first, old), (second, new)))
    largest, apart, norm = 0.0, 0.0, 0.0
    with np.errstate(all="ignore"):  # weights may hold infinities, and then so do the figures
        for start in range(0, len(a), CHUNK):
            x, y = (part[start : start + CHUNK].astype(np.float64) for part in (a, b))
            gap = np.abs(x - y)
            gap[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
            largest = max(largest, float(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max(initial=0.0)))
            apart += float(np.square(gap).sum())
            norm += float(np.square(x).sum())
    rel = math.sqrt(apart / norm) if norm else math.inf
    return {"max_abs": _finite(largest), "rel": _finite(rel)}


def _finite(value: float) -> float | str:
    """JSON has no word for infinity."""
    return value if math.isfinite(value) else "inf"
