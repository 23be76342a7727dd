# SPDX-License-Identifier: Apache-2.0
"""External data of exported graphs: only the tensors that they use, each once, in one file beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from genai_bundle.layout import alignment
from genai_bundle.records import WEIGHTS_FOLDER
from genai_bundle.writer import Shard

if TYPE_CHECKING:
    import onnx

    from genai_bundle.bundle import Bundle

LARGE = 1 << 20
SMALL_ALIGNMENT = 64
"""Tensors of a MiB and more begin where pages do, as in a bundle's shards, so that engines may map them."""


class Weights:
    """The file `name`, which takes the place of a bundle's shards. Its bytes are read as they are written."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.name = name
        self._bundle = bundle
        self._places: dict[tuple[str, int, int], int] = {}
        self._end = 0

    def take(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Point the model's external data at this file. `model` has passed `sanitize`: each entry has three keys."""
        for tensor in model.graph.initializer:
            if not tensor.external_data:
                continue
            entry = {item.key: item.value for item in tensor.external_data}
            key = (entry["location"], int(entry["offset"]), int(entry["length"]))
            if key not in self._places:
                step = alignment(WEIGHTS_FOLDER) if key[2] >= LARGE else SMALL_ALIGNMENT
                self._places[key] = -(-self._end // step) * step
                self._end = self._places[key] + key[2]
            del tensor.external_data[:]
            for word, value in (("location", self.name), ("offset", self._places[key]), ("length", key[2])):
                tensor.external_data.add(key=word, value=str(value))
        return model

    def files(self) -> dict[str, Shard]:
        """{name: its content}; nothing where no graph has external data."""
        if not self._places:
            return {}
        return {self.name: Shard(self._end, [(place, self._reader(*key)) for key, place in self._places.items()])}

    def _reader(self, member: str, offset: int, length: int) -> Callable[[], memoryview]:
        return lambda: self._bundle.view(member)[offset : offset + length]
