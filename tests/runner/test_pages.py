# SPDX-License-Identifier: Apache-2.0
"""While an engine packs its own copy of the weights, the file's pages do not stay beside it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from cli.samples import talker
from genai_bundle.bundle import open_bundle
from genai_runner.pages import given_back

SIZE = 64 << 20
STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes of mapped files that are in memory now."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))


@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
def test_pages_are_given_back_while_they_are_read_and_keep_what_they_hold(tmp_path: Path) -> None:
    ones = np.ones(SIZE // 4, np.float32)
    path = talker(tmp_path / "large.genai", {"docs/large.bin": ones.tobytes()})
    with open_bundle(path) as opened:
        weights = np.frombuffer(opened.view("docs/large.bin"), np.float32)
        opened.release("docs/large.bin")  # its digest was checked
        before = resident()
        with given_back(opened, ["docs/large.bin"]):
            assert weights.sum() == ones.size  # every page is read
            end = time.monotonic() + 30
            while resident() > before + SIZE // 8:
                assert time.monotonic() < end
                time.sleep(0.01)
        assert weights.sum() == ones.size
        assert resident() > before + SIZE // 2  # and nobody gives them back any more
        del weights
