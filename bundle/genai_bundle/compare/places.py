# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a graph's initializers lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import TensorProto, numpy_helper

if TYPE_CHECKING:
    import onnx

    from genai_bundle.bundle import Bundle


@dataclass(frozen=True)
class Place:
    """A tensor's bytes: `length` of them at `offset` of a shard, or `inside` the graph."""

    dtype: int
    shape: tuple[int, ...]
    member: str
    offset: int
    length: int
    inside: bytes = b""


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


def view(bundle: Bundle, place: Place) -> memoryview:
    """The bytes themselves, mapped or in memory."""
    if not place.member:
        return memoryview(place.inside)
    return bundle.view(place.member)[place.offset : place.offset + place.length]
