# SPDX-License-Identifier: Apache-2.0
"""A GGUF file as plain values: its metadata by key, and its tensors as byte ranges of a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.errors import SourceError, UsageError

MAGIC = b"GGUF"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: `kind` is ggml's name of its form (`F16`, `Q4_K`), `rows` u8[rows, bytes of a row] views the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    rows: NDArray[np.uint8]

    def values(self, picked: Any = slice(None)) -> NDArray[Any]:
        """Some of the rows, decoded: floats in their own type, blocks as float32. The last axis is the row's."""
        import ml_dtypes
        from gguf import GGMLQuantizationType, dequantize

        raw = np.ascontiguousarray(self.rows[picked])
        plain = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}.get(self.kind)
        if plain is not None:
            return raw.view(plain)
        decoded: NDArray[Any] = dequantize(raw, GGMLQuantizationType[self.kind])
        return decoded


@dataclass(frozen=True)
class GgufFile:
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])


def is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def read_gguf(path: Path) -> GgufFile:
    """Read the file's tables; its tensors stay where they are.

    Raises:
        UsageError: the package gguf is not installed.
        SourceError: the file is cut short, one part of several, or no language model's.
    """
    if find_spec("gguf") is None:
        raise UsageError(
            "reading GGUF needs gguf", where=str(path), hint='Install it with: pip install "genai-bundle[gguf]"'
        )
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise SourceError(
            f"cannot be read: {str(error) or type(error).__name__}", where=path.name,
            hint="The file is cut short or damaged; download it again",
        ) from error  # fmt: skip
    if reader.endianess.name != "LITTLE":
        raise SourceError("is a big-endian file", where=path.name, hint="Convert it with gguf_convert_endian")
    if not isinstance(metadata.get("general.architecture"), str):
        raise SourceError("general.architecture is missing", where=path.name)
    if metadata.get("split.count", 1) != 1:
        raise SourceError(
            f"is one of {metadata['split.count']} parts", where=path.name,
            hint="Join them first: llama-gguf-split --merge FIRST-PART OUTPUT",
        )  # fmt: skip
    return GgufFile(path, metadata, {tensor.name: _tensor(tensor) for tensor in reader.tensors})


def _tensor(tensor: Any) -> GgufTensor:
    shape = tuple(int(length) for length in reversed(tensor.shape.tolist()))
    rows = 1
    for length in shape[:-1]:
        rows *= length
    return GgufTensor(tensor.name, tensor.tensor_type.name, shape, tensor.data.view(np.uint8).reshape(rows, -1))
