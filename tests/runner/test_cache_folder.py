# SPDX-License-Identifier: Apache-2.0
"""Where cached things go: the variable first, then what the system says, and nowhere if that cannot be written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from genai_runner.cache_folder import cache_folder


def test_the_variable_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAI_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_folder("compiled") == tmp_path / "mine" / "compiled"
    assert (tmp_path / "mine" / "compiled").is_dir()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the rules of the XDG specification")
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_the_xdg_folder_counts_where_it_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    monkeypatch.delenv("GENAI_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "some/where" if relative else str(tmp_path / "xdg"))
    expected = tmp_path / "home" / ".cache" if relative else tmp_path / "xdg"
    assert cache_folder("probe") == expected / "genai-bundle" / "probe"


def test_a_place_that_cannot_be_made_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("GENAI_CACHE_DIR", str(tmp_path / "file"))
    assert cache_folder("probe") is None
