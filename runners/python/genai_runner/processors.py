# SPDX-License-Identifier: Apache-2.0
"""What changes the scores of the next token, before one is chosen. Normative text: spec/ops/sample.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .text import TextCodec

Scores = NDArray[np.float64]

Processor = Callable[[Sequence[int], Scores], Scores]
"""(the ids of prompt and answer so far, f64[V]) -> f64[V]. It may change and return the array that it is given.

The ids only ever grow by one a call, except after the decoder was rewound. One that has a method `begin(ids)` is told
that the model is about to run for the scores that follow `ids`: it may prepare them in another thread.
"""


@runtime_checkable
class Bindable(Protocol):
    """What becomes a processor once the bundle's tokenizer is known, such as a grammar."""

    def bind(self, text: TextCodec) -> Processor:
        """A processor of its own memory for one sequence."""


def begin(processors: Sequence[Processor], ids: Sequence[int]) -> None:
    """Tell those that want to know that the scores behind `ids` are about to be computed."""
    for processor in processors:
        told = getattr(processor, "begin", None)
        if told is not None:
            told(ids)
