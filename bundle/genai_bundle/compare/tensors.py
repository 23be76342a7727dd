# SPDX-License-Identifier: Apache-2.0
"""Weights of two bundles by the names of initializers: the same bytes, the same bytes elsewhere, or how far apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from genai_bundle.compare.blocks import Quantised, quantised
from genai_bundle.compare.places import Place, places, view

if TYPE_CHECKING:
    from genai_bundle.bundle import Bundle

Json = Any
Progress = Callable[[int, int], None]
Key = tuple[str, Place | None, Place | None]
"""An initializer's name, and where it lies in both bundles."""

CHUNK = 1 << 20
"""Elements at a time, in float64 while they are compared: some tens of MiB however large a tensor is."""

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
BYTES = 4 << 20


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
    pairs: dict[Key, list[str]] = {}
    blocks: dict[tuple[Quantised, Quantised], list[Key]] = {}
    for before, after, role in graphs:
        models = first.graph(before), second.graph(after)
        had, has = (places(model) for model in models)
        for name in dict.fromkeys((*had, *has)):
            pairs.setdefault((name, had.get(name), has.get(name)), []).append(role)
        sides = quantised(models[0], had), quantised(models[1], has)
        for name in sides[0].keys() & sides[1].keys():
            pair = (sides[0][name], sides[1][name])
            parts = dict.fromkeys(part for side in pair for part in side.parts)
            blocks[pair] = [(part, had.get(part), has.get(part)) for part in parts]
    total = sum(old.length for _, old, new in pairs if old and new and _needs_reading(first, second, old, new))
    found, done = Tensors(), 0
    told: dict[Key, Json] = {}
    for key, roles in pairs.items():
        name, old, new = key
        said = told[key] = {"name": name, "graphs": roles, **_compare(first, second, old, new)}
        if said["change"] == "same":
            found.same += 1
        else:
            found.changed.append(said)
            found.touched.update(roles)
        if old and new and _needs_reading(first, second, old, new):
            done += old.length
            if progress is not None:
                progress(done, total)
    for pair, keys in blocks.items():
        apart = [told[key] for key in keys if told[key]["change"] in ("changed", "retyped")]
        if apart and pair[0].shape == pair[1].shape:
            apart[0]["dequantised"] = _blocks_apart(first, second, *pair)
    return found


def _blocks_apart(first: Bundle, second: Bundle, old: Quantised, new: Quantised) -> dict[str, Json]:
    """The distance of what two quantised weights stand for, some rows at a time."""
    count, length = old.shape
    step = max(1, CHUNK // length)
    return _distance(
        (old.rows(first, start, min(start + step, count)), new.rows(second, start, min(start + step, count)))
        for start in range(0, count, step)
    )


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
    dtype = helper.tensor_dtype_to_np_dtype(old.dtype)
    a, b = (np.frombuffer(view(bundle, place), dtype) for bundle, place in ((first, old), (second, new)))
    starts = range(0, len(a), CHUNK)
    return said | _distance((a[start : start + CHUNK], b[start : start + CHUNK]) for start in starts)


def _form(place: Place | None) -> str:
    if place is None:
        return ""
    return f"{TensorProto.DataType.Name(place.dtype).lower()}[{','.join(map(str, place.shape))}]"


def _where(place: Place) -> str:
    return f"{place.member}, byte {place.offset}" if place.member else "inside the graph"


def _equal(first: Bundle, second: Bundle, old: Place, new: Place) -> bool:
    if old.length != new.length:
        return False
    a, b = view(first, old), view(second, new)
    return all(a[start : start + BYTES] == b[start : start + BYTES] for start in range(0, old.length, BYTES))


def _bytes_apart(first: Bundle, second: Bundle, old: Place, new: Place) -> Json:
    """How many bytes differ, of how many: integers of a quantised weight have no distance by themselves."""
    a, b = (np.frombuffer(view(bundle, place), np.uint8) for bundle, place in ((first, old), (second, new)))
    size = min(len(a), len(b))
    apart = sum(int(np.count_nonzero(a[i : i + BYTES] != b[i : i + BYTES])) for i in range(0, size, BYTES))
    return {"differ": apart + abs(len(a) - len(b)), "of": max(len(a), len(b))}


def _distance(parts: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, Json]:
    """max_abs: the largest difference of an element. rel: the norm of the difference, over that of the first tensor.

    parts: both tensors, some elements at a time.
    """
    largest, apart, norm = 0.0, 0.0, 0.0
    with np.errstate(all="ignore"):  # weights may hold infinities, and then so do the figures
        for pair in parts:
            x, y = (part.astype(np.float64) for part in pair)
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
