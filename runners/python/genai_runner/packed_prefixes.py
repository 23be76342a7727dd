# SPDX-License-Identifier: Apache-2.0
"""Saved prefixes that lie in the bundle (spec/manifest.md, prefixes). Their arrays are used where they lie."""

from __future__ import annotations

import numpy as np

from genai_bundle.bundle import Bundle
from genai_bundle.manifest import StoredArray
from genai_bundle.prefixes import array_size

from .backends.base import Array
from .saved_prefixes import Prefix, shown
from .values import DTYPES


def packed_prefixes(bundle: Bundle) -> list[Prefix]:
    """The prefixes of a bundle that has been checked, their arrays as views of its mapping."""
    found = []
    for name, entry in bundle.manifest.prefixes.items():
        arrays = {
            (state, port): _view(bundle, array)
            for state, ports in entry.states.items()
            for port, array in ports.items()
            if array.type in DTYPES
        }
        size = sum(array_size(array) for ports in entry.states.values() for array in ports.values())
        text = shown(entry.of.get("prompt", entry.of.get("system", "")))
        known = entry.computed, entry.adapter, entry.ids, tuple(sorted(arrays)), bundle.manifest.name, text
        found.append(Prefix(name, bundle.path, size, *known, inside=arrays))
    return found


def _view(bundle: Bundle, array: StoredArray) -> Array:
    data = bundle.view(array.file)[array.offset : array.offset + array_size(array)]
    return np.frombuffer(data, DTYPES[array.type].newbyteorder("<")).reshape(array.dims)
