# SPDX-License-Identifier: Apache-2.0
"""Move the weights of graphs into shards that all of them share.

Nothing is copied here: a shard knows for each tensor where it goes and how to get its bytes when the bundle is written.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_bundle.errors import SourceError
from genai_bundle.writer import Shard

INLINE = 1 << 10
"""Bytes. Smaller tensors stay in the graph, where they take part in shape inference."""

PAGED = 1 << 20
"""Bytes. Tensors from this size on begin at a multiple of 65536, others at one of 64."""

MAX_SHARD = 1 << 30
"""Bytes. A tensor larger than this gets a shard of its own."""

Read = Callable[[], bytes | memoryview]


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: the member, and offset and length in it."""

    member: str
    offset: int
    length: int


@dataclass
class Packer:
    """Lays tensors out in shards `weights/PREFIX-00.bin`, equal bytes once."""

    prefix: str
    _segments: list[list[tuple[int, Read]]] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)
    _places: dict[bytes, Place] = field(default_factory=dict)

    def place(self, length: int, read: Read) -> Place:
        """The place of `length` bytes. `read` is called now for their digest, and again when the bundle is written."""
        digest = hashlib.sha256(read()).digest()
        if digest not in self._places:
            step = 65536 if length >= PAGED else 64
            start = -(-self._ends[-1] // step) * step if self._ends else 0
            if not self._ends or (self._ends[-1] and start + length > MAX_SHARD):
                self._segments.append([])
                self._ends.append(0)
                start = 0
            self._segments[-1].append((start, read))
            self._ends[-1] = start + length
            self._places[digest] = Place(self._member(len(self._ends) - 1), start, length)
        return self._places[digest]

    def shards(self) -> dict[str, Shard]:
        """The shards, by their member's path."""
        return {self._member(index): Shard(end, self._segments[index]) for index, end in enumerate(self._ends)}

    def _member(self, index: int) -> str:
        return f"weights/{self.prefix}-{index:02}.bin"


def pack(models: Mapping[str, ir.Model], prefix: str = "decoder") -> tuple[dict[str, bytes], dict[str, Shard]]:
    """Serialise graphs with their initializers of 1 KiB and more in shards.

    Args:
        models: the graphs by member path, in the order in which their weights are laid out. They are not changed.
        prefix: names the shards, `weights/PREFIX-00.bin`.

    Returns:
        The graphs' bytes and the shards, both by member path. The same graphs give the same bytes.
    """
    packer = Packer(prefix)
    places: dict[int, Place] = {}  # variants hold the very tensors of the portable graph: no second digest for those
    graphs: dict[str, bytes] = {}
    for path, model in models.items():
        copy = model.clone()
        for name, value in copy.graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                raise SourceError(f"the initializer '{name}' has no value", where=path)
            if tensor.nbytes < INLINE or tensor.dtype == ir.DataType.STRING:
                continue
            if id(tensor) not in places:
                places[id(tensor)] = packer.place(tensor.nbytes, _reader(tensor))
            found = places[id(tensor)]
            value.const_value = ir.ExternalTensor(
                found.member,
                found.offset,
                found.length,
                tensor.dtype,
                shape=value.shape or ir.Shape(tensor.numpy().shape),
                name=name,
            )
        graphs[path] = _serialise(copy)
    return graphs, packer.shards()


def _reader(tensor: ir.TensorProtocol) -> Read:
    """The raw bytes of a tensor, row-major and little-endian; a view of the checkpoint's mapping where it can be."""

    def read() -> bytes | memoryview:
        if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
            return tensor.tobytes()
        array: NDArray[Any] = np.ascontiguousarray(tensor.numpy())
        return array.reshape(-1).view(np.uint8).data

    return read


def _serialise(model: ir.Model) -> bytes:
    """Without the shapes of inner values: every engine infers them, and they would make up a third of the bytes."""
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in outputs:
                value.shape, value.type = None, None
    raw: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return raw
