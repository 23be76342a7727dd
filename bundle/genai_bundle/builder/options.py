# SPDX-License-Identifier: Apache-2.0
"""Everything that a build can be told. One record, so that the command, the recognisers and the builders agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class BuildOptions:
    """What the command line says beside source and target.

    details: `name`, `license`, `description`, `version` for the manifest. overwrite: replace the target.
    exporter: the only exporter to try; None for all that the kind of model knows, in their order.
    quantize: None (weights keep the type in which they are stored), "int4", "int8", "fp16" or "bf16".
    block_size: elements along K that share a scale. symmetric: zero points in the middle of the range.
    overrides: (pattern of weight names, `quantize` value), the last match counts. exclude: patterns of weights that
        keep their type.
    perplexity: a text file on which the change that quantisation makes is measured.
    adapters: folders of LoRA adapters by the name that a request gives. allow_lossy: drop keys that are not understood.
    dtype_suffix: which form of a folder's graphs to import, such as "q4"; None for the one without an ending.
    """

    details: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    exporter: str | None = None
    quantize: str | None = None
    block_size: int = 32
    symmetric: bool = False
    overrides: Sequence[tuple[str, str]] = ()
    exclude: Sequence[str] = ()
    perplexity: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    allow_lossy: bool = False
    dtype_suffix: str | None = None
