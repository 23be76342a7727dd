# SPDX-License-Identifier: Apache-2.0
"""`org/name` is found in the user's cache alone, where huggingface_hub itself finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import optional
from genai_bundle.builder import hub
from genai_bundle.builder.build import build
from genai_bundle.errors import SourceError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    repository = tmp_path / "home" / "hub" / "models--some-org--Model-1.5b"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return folder


def test_a_repository_in_the_cache(snapshot: Path) -> None:
    assert hub.cached_snapshot("some-org/Model-1.5b") == snapshot


def test_huggingface_hub_agrees(snapshot: Path) -> None:
    library = optional("huggingface_hub", "torch")
    cache = snapshot.parents[2]
    assert library.snapshot_download("some-org/Model-1.5b", cache_dir=cache, local_files_only=True) == str(snapshot)


def test_a_build_reads_it(snapshot: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(SourceError, match="model_type is missing"):
        build(Path("some-org/Model-1.5b"), tmp_path / "x.genai", progress=told.append)
    assert told[0] == "found some-org/Model-1.5b in the Hugging Face cache"


@pytest.mark.usefixtures("snapshot")
def test_a_repository_that_the_cache_lacks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"some-org/other: .*hf download some-org/other"):
        build(Path("some-org/other"), tmp_path / "x.genai")


@pytest.mark.parametrize("name", ["/absolute/path", "one", "a/b/c", "../up", "a/b c"])
def test_what_is_no_repository(name: str) -> None:
    assert not hub.is_repository(Path(name))
