# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are quantised already, by GPTQ or AWQ: their integers, scales and zeros as this format's blocks.

Both keep a matrix as [K, N] in words of 32 bits, with scales f16[K / group, N]. GPTQ packs the elements of a word along
K, the lowest bits first, and states each zero less one (but for `checkpoint_format` gptq_v2). AWQ packs them along N,
in the order 0, 2, 4, 6, 1, 3, 5, 7. Nothing is rounded here: an element stays the same (q - zero) * scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.builder.safetensors import StoredTensor
from genai_bundle.builder.storage.blocks import LARGEST, BlockForm, Blocks, dequantise, fitting_block, pack
from genai_bundle.builder.tensors import DerivedTensor, stored_array
from genai_bundle.errors import SourceError

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column, of eight, whose element lies in each half byte of a word, from the lowest."""

_PARTS = ("qweight", "qzeros", "scales", "g_idx")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class KeptBlocks:
    """A matrix [N, K] in blocks. `rows(start, stop)` reads some of them."""

    shape: tuple[int, int]
    form: BlockForm
    rows: Callable[[int, int], Blocks]


def unpacked(
    tensors: Mapping[str, StoredTensor], config: Json
) -> tuple[dict[str, StoredTensor], dict[str, KeptBlocks]]:
    """The checkpoint's tensors with a matrix `X.weight` in the place of `X.qweight` and its parts, and their blocks.

    Args:
        config: `quantization_config`.

    Raises:
        SourceError: a method, or a form of one, that has no blocks.
    """
    method = config.get("quant_method")
    if method not in ("gptq", "awq"):
        raise SourceError(
            f"quant_method is {method!r}; of quantised checkpoints gptq and awq can be built", where="config.json",
            hint="Build from a version whose weights are floats, with --quantize",
        )  # fmt: skip
    bits, group = config.get("bits"), config.get("group_size")
    if bits not in ((4, 8) if method == "gptq" else (4,)) or type(group) is not int:
        raise SourceError(f"{method} of {bits} bits in groups of {group} cannot be built", where="config.json")
    if config.get("dynamic") or config.get("version", "gemm") not in ("gemm", "GEMM"):
        odd = "dynamic" if config.get("dynamic") else "version"
        raise SourceError(
            f"quantization_config has {odd} {config[odd]!r}, which is not known here", where="config.json"
        )
    read = _Reader(str(method), 8 if bits == 8 else 4, group, 0 if config.get("checkpoint_format") == "gptq_v2" else 1)
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    taken = {f"{name}.{part}" for name in names for part in _PARTS}
    plain: dict[str, StoredTensor] = {name: tensor for name, tensor in tensors.items() if name not in taken}
    kept = {}
    for name in names:
        blocks = read.blocks(name, tensors)
        kept[f"{name}.weight"] = blocks
        file = tensors[f"{name}.qweight"].file
        plain[f"{name}.weight"] = DerivedTensor(f"{name}.weight", file, "F32", blocks.shape, _numbers(blocks))
    if not kept:
        raise SourceError("quantization_config is set, but no tensor is named .qweight", where="config.json")
    return plain, kept


def _numbers(blocks: KeptBlocks) -> Callable[[slice], NDArray[np.float32]]:
    def rows(part: slice) -> NDArray[np.float32]:
        start, stop, _ = part.indices(blocks.shape[0])
        return dequantise(blocks.rows(start, max(start, stop)), blocks.form)

    return rows


@dataclass(frozen=True)
class _Reader:
    """How the words of one checkpoint are read. `less`: what zeros are stated less."""

    method: str
    bits: int
    group: int
    less: int

    def blocks(self, name: str, tensors: Mapping[str, StoredTensor]) -> KeptBlocks:
        words, zero_words, scales = (self._array(f"{name}.{part}", tensors) for part in _PARTS[:3])
        each = 32 // self.bits
        gptq = self.method == "gptq"
        length, count = (words.shape[0] * each, words.shape[1]) if gptq else (words.shape[0], words.shape[1] * each)
        group = length if self.group == -1 else self.group
        where = f"{tensors[f'{name}.qweight'].file}: {name}"
        if length % group or scales.shape != (length // group, count) or zero_words.shape[1] * each != count:
            message = f"qweight {list(words.shape)}, qzeros {list(zero_words.shape)} and scales {list(scales.shape)}"
            raise SourceError(f"has {message}, which do not fit groups of {group}", where=where)
        block = fitting_block(group, LARGEST)
        if block is None:
            raise SourceError(f"has groups of {group}, which do not divide into blocks", where=where)
        if f"{name}.g_idx" in tensors and gptq:
            index = stored_array(tensors[f"{name}.g_idx"])
            if not np.array_equal(index, np.arange(length) // group):
                raise SourceError(
                    "orders its rows by their importance (desc_act), so that its groups are no blocks", where=where,
                    hint="Build from the original checkpoint, or from one that was quantised with desc_act false",
                )  # fmt: skip
        zeros = self._along_columns(zero_words) + np.uint8(self.less if gptq else 0)
        if zeros.max(initial=0) >> self.bits:
            raise SourceError(f"has a zero point of {zeros.max()}, beyond {self.bits} bits", where=where)
        symmetric = bool((zeros == 1 << (self.bits - 1)).all())
        form = BlockForm(self.bits, block, symmetric)
        wide = group // block

        def rows(start: int, stop: int) -> Blocks:
            part = slice(start, stop)
            return Blocks(
                self._values(words, start, stop),
                np.repeat(scales[:, part].T.astype(np.float32), wide, axis=1),
                np.repeat(zeros[:, part].T, wide, axis=1),
            )

        return KeptBlocks((count, length), form, rows)

    def _array(self, name: str, tensors: Mapping[str, StoredTensor]) -> NDArray[Any]:
        found = tensors.get(name)
        if found is None:
            raise SourceError(f"the tensor '{name}' is missing", where="config.json", hint="The checkpoint is damaged")
        wanted = ("F16", "BF16", "F32") if name.endswith(".scales") else ("I32",)
        if found.dtype not in wanted or len(found.shape) != 2:
            message = f"is {found.dtype}{list(found.shape)}, expected a matrix of {' or '.join(wanted)}"
            raise SourceError(message, where=f"{found.file}: {name}")
        return stored_array(found)

    def _values(self, words: NDArray[Any], start: int, stop: int) -> NDArray[np.uint8]:
        """Rows of the packed matrix [N, K]: of GPTQ they are the bytes of its words, turned."""
        if self.method == "gptq":
            return np.ascontiguousarray(words[:, start:stop].T).view(np.uint8)
        each = 32 // self.bits
        first = start // each
        columns = self._along_columns(words[:, first : math.ceil(stop / each)])
        return pack(np.ascontiguousarray(columns[:, start - first * each : stop - first * each].T), self.bits)

    def _along_columns(self, words: NDArray[Any]) -> NDArray[np.uint8]:
        """Words that are packed along their rows, [r, c] to [r, c * 32 / bits]."""
        each = 32 // self.bits
        order = AWQ_ORDER if self.method == "awq" else range(each)
        found = np.empty((*words.shape, each), np.uint8)
        for place, column in enumerate(order):
            found[..., column] = (words.view(np.uint32) >> np.uint32(place * self.bits)) & ((1 << self.bits) - 1)
        return found.reshape(len(words), -1)
