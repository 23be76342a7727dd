# SPDX-License-Identifier: Apache-2.0
"""The table of what is tried on every backend, a file for each kind of operator. A line more is a case more."""

from ..case import Case
from . import arithmetic, attention, contrib, control, layers, media, tensors

CASES: tuple[Case, ...] = (
    *attention.CASES,
    *tensors.CASES,
    *control.CASES,
    *arithmetic.CASES,
    *layers.CASES,
    *media.CASES,
    *contrib.CASES,
)
