# SPDX-License-Identifier: Apache-2.0
"""What the proofs of models with several graphs have in common. Knows no engine: a graph is something that runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.builder.parity import TOLERANCE
from genai_bundle.errors import ProofError

Array = NDArray[Any]

EMPTY: Mapping[str, Array] = {}


@dataclass(frozen=True)
class LoadedGraph:
    """A graph of a bundle. dims: those of its input ports; lengths that a run decides have names."""

    dims: Mapping[str, tuple[int | str, ...]]
    outputs: tuple[str, ...]
    execute: Callable[[Mapping[str, Array]], Mapping[str, Array]]

    def __call__(self, offered: Mapping[str, Array]) -> Mapping[str, Array]:
        """All outputs for those of the values that the graph has ports for."""
        return self.execute({name: value for name, value in offered.items() if name in self.dims})


def largest(check: str, got: Array, expected: Array, where: str, tolerance: float = TOLERANCE) -> float:
    """The largest absolute difference.

    Raises:
        ProofError: it is beyond `tolerance`, or not a number, or the shapes differ.
    """
    if got.shape != expected.shape:
        raise ProofError(f"{check}: has the shape {got.shape}, expected {expected.shape}", where=where)
    gap = np.nan_to_num(np.abs(got.astype(np.float64) - expected), nan=np.inf, posinf=np.inf)
    worst = float(gap.max(initial=0.0))
    if not worst <= tolerance:
        place = [int(index) for index in np.unravel_index(int(gap.argmax()), gap.shape)]
        raise ProofError(
            f"{check}: differs from the model by {worst:.3g} at {place}, allowed are {tolerance:g}", where=where,
            hint="The graph is wrong for this model; nothing was written",
        )  # fmt: skip
    return worst


def padded(rows: list[Array]) -> tuple[Array, Array]:
    """Rows of different length as one batch, zeros behind the shorter ones, and its mask i64[batch,length]."""
    width = max(len(row) for row in rows)
    batch = np.zeros((len(rows), width, *rows[0].shape[1:]), rows[0].dtype)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        batch[index, : len(row)], mask[index, : len(row)] = row, 1
    return batch, mask
