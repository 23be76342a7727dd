# SPDX-License-Identifier: Apache-2.0
"""Matrices that a GGUF file holds in blocks which a bundle can hold too: they keep their bits.

Q8_0 and Q4_0 are symmetric blocks of 32 with a float16 scale, which float32 holds exactly; other forms have a second
scale, a minimum or a table, for which ONNX has no operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.builder.prequantised import KeptBlocks
from genai_bundle.builder.storage.blocks import BlockForm, Blocks, pack
from genai_bundle.importers.gguf.file import GgufTensor

FORMS = {"Q8_0": BlockForm(8, 32, True), "Q4_0": BlockForm(4, 32, True)}

_SCALE = 2
"""Bytes of a block's scale, with which it begins."""


def kept_blocks(sources: Sequence[GgufTensor], order: NDArray[np.intp] | None) -> KeptBlocks | None:
    """A parameter that is one matrix of such a form, its rows in the given order; None for any other."""
    tensor = sources[0]
    form = FORMS.get(tensor.kind)
    if form is None or len(sources) > 1 or len(tensor.shape) != 2:
        return None

    def rows(start: int, stop: int) -> Blocks:
        raw = tensor.rows[start:stop] if order is None else tensor.rows[order[start:stop]]
        blocks = np.ascontiguousarray(raw).reshape(len(raw), -1, _SCALE + form.block * form.bits // 8)
        scales = np.ascontiguousarray(blocks[..., :_SCALE]).view(np.float16)[..., 0].astype(np.float32)
        values = pack(_elements(blocks[..., _SCALE:], form).reshape(len(raw), -1), form.bits)
        return Blocks(values, scales, np.full(scales.shape, form.middle, np.uint8))

    return KeptBlocks((tensor.shape[0], tensor.shape[1]), form, rows)


def _elements(raw: NDArray[np.uint8], form: BlockForm) -> NDArray[Any]:
    """One unsigned element a byte. Of four bits, ggml keeps a block's first half in the low halves of its bytes."""
    if form.bits == 8:
        return raw ^ np.uint8(form.middle)  # signed to unsigned
    return np.concatenate([raw & 15, raw >> 4], axis=-1)
