# SPDX-License-Identifier: Apache-2.0
"""The kind of processor, as far as it decides how an engine rounds."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

DECIDING = frozenset((
    "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
))  # fmt: skip
"""Sets of instructions, by Linux' names, for which engines have kernels of their own."""


@cache
def processor() -> str:
    """A name that two processors share only where engines take the same kernels, as far as the system tells."""
    found: set[str] = set()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                found |= DECIDING & set(value.split())
    return " ".join([platform.machine() or "unknown", *(sorted(found) or platform.processor().split())])
