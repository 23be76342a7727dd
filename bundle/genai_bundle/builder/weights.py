# SPDX-License-Identifier: Apache-2.0
"""Serialise `onnx_ir` graphs, their weights in shards that all of them share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_bundle.builder.shards import INLINE, Packer, Place, Read
from genai_bundle.builder.variants.ort_joined import Joined
from genai_bundle.errors import SourceError
from genai_bundle.writer import Shard


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
    for joined in _joined(models.values()):  # first: what lies elsewhere cannot be brought side by side any more
        places[id(joined)] = packer.join([(part.nbytes, _reader(part)) for part in joined.parts])
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


def _joined(models: Iterable[ir.Model]) -> Iterator[Joined]:
    """Tensors that are stored as the bytes of others; small parts stay in their graphs, and so have no place."""
    for model in models:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, Joined) and tensor.parts[0].nbytes >= INLINE:
                yield tensor


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
