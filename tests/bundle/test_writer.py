# SPDX-License-Identifier: Apache-2.0
"""The writer: the same bytes every time, and all or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genai_bundle.bundle import open_bundle
from genai_bundle.errors import GenaiError, ManifestError, SourceError, UsageError
from genai_bundle.writer import Shard, write_bundle, write_folder
from vectors.containers import DOCUMENT, GOOD, MEMBERS, SHARD, WITH_SHARD

Write = Callable[..., str]
BOTH = pytest.mark.parametrize("write", [write_bundle, write_folder])


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_bytes_are_those_of_the_other_writer(tmp_path: Path) -> None:
    target = tmp_path / "a.genai"
    write_bundle(target, DOCUMENT, MEMBERS)
    assert target.read_bytes() == GOOD


def test_twice_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the order of the members, the kind of their sources, and the folder."""
    path = tmp_path / "notes.txt"
    path.write_bytes(WITH_SHARD[SHARD])
    pieces = Shard(768, [(0, lambda: WITH_SHARD[SHARD][:300]), (300, lambda: memoryview(WITH_SHARD[SHARD])[300:])])
    results = []
    for index, source in enumerate((WITH_SHARD[SHARD], path, pieces)):
        (tmp_path / str(index)).mkdir()
        target = tmp_path / str(index) / f"{index}.genai"
        id_ = write_bundle(target, DOCUMENT, {SHARD: source, **MEMBERS})
        results.append((id_, hashlib.sha256(target.read_bytes()).hexdigest()))
    assert len(set(results)) == 1


def test_file_and_folder_have_the_same_id_and_members(tmp_path: Path) -> None:
    as_file = write_bundle(tmp_path / "a.genai", DOCUMENT, WITH_SHARD)
    as_folder = write_folder(tmp_path / "a", DOCUMENT, WITH_SHARD)
    assert as_file == as_folder
    with open_bundle(tmp_path / "a.genai") as file, open_bundle(tmp_path / "a") as folder:
        assert file.id == folder.id == as_file
        assert {path: file.read(path) for path in file.members} == {path: folder.read(path) for path in folder.members}


def test_stock_tools_open_it(tmp_path: Path) -> None:
    target = tmp_path / "a.genai"
    write_bundle(target, DOCUMENT, WITH_SHARD)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["mimetype", "manifest.json", "docs/notes.txt", "neg.onnx", SHARD]
        assert archive.read(SHARD) == WITH_SHARD[SHARD]
    if shutil.which("unzip"):
        assert subprocess.run(["unzip", "-tq", str(target)], capture_output=True, check=False).returncode == 0


def test_segments_and_the_zeros_between(tmp_path: Path) -> None:
    shard = Shard(300, [(64, lambda: b"one"), (128, lambda: b"two")])
    write_bundle(tmp_path / "a.genai", DOCUMENT, {**MEMBERS, SHARD: shard})
    with open_bundle(tmp_path / "a.genai") as bundle:
        assert bundle.read(SHARD) == bytes(64) + b"one" + bytes(61) + b"two" + bytes(169)


@pytest.mark.parametrize("size", [(4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9 << 20])
def test_chunks(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    half = size // 2 + 1
    shard = Shard(size, [(0, lambda: data[:half]), (half, lambda: data[half:])])
    write_folder(tmp_path / "a", DOCUMENT, {**MEMBERS, SHARD: shard})
    with open_bundle(tmp_path / "a") as bundle:
        pieces = [data[start : start + (4 << 20)] for start in range(0, size, 4 << 20)]
        expected = tuple(hashlib.sha256(piece).hexdigest() for piece in pieces)
        assert bundle.manifest.files[SHARD].chunks == expected
        bundle.verify()


@BOTH
@pytest.mark.parametrize(
    "shard",
    [
        Shard(100, [(0, lambda: b"x" * 101)]),
        Shard(100, [(64, lambda: b"x"), (0, lambda: b"x")]),
        Shard(100, [(0, lambda: b"xx"), (1, lambda: b"x")]),
        Shard(100, [(200, lambda: b"")]),
    ],
)
def test_a_source_that_lies(tmp_path: Path, write: Write, shard: Shard) -> None:
    with pytest.raises(SourceError, match=r"weights/neg-00\.bin"):
        write(tmp_path / "a.genai", DOCUMENT, {**MEMBERS, SHARD: shard})
    assert contents(tmp_path) == []


@BOTH
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, write: Write) -> None:
    source = tmp_path / "notes.txt"
    source.write_bytes(b"four")

    def grow() -> bytes:
        source.write_bytes(b"fourteen")
        return b"x"

    members = {"docs/a": source, SHARD: Shard(1, [(0, grow)]), "weights/neg-01.bin": source}
    with pytest.raises(SourceError, match="its source does not have the 4 bytes"):
        write(tmp_path / "a.genai", DOCUMENT, {**MEMBERS, **members})
    assert contents(tmp_path) == ["notes.txt"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        write_bundle(tmp_path / "a.genai", DOCUMENT, {**MEMBERS, "docs/a": tmp_path / "absent"})


@BOTH
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), MemoryError(), OSError(5, "broken")])
@pytest.mark.parametrize("moment", ["source", "commit"])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, write: Write, error: BaseException, moment: str) -> None:
    target = tmp_path / "a.genai"
    write(target, DOCUMENT, MEMBERS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_: object) -> bytes:
        raise error

    shard = Shard(768, [(0, fail if moment == "source" else lambda: b"")])
    expected = SourceError if isinstance(error, OSError) and moment == "source" else type(error)
    with pytest.raises(expected):
        write(target, DOCUMENT, {**MEMBERS, SHARD: shard}, overwrite=True, before_commit=fail)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert contents(tmp_path) == ["a.genai"]


@BOTH
def test_an_existing_target_is_kept(tmp_path: Path, write: Write) -> None:
    target = tmp_path / "a.genai"
    first = write(target, DOCUMENT, MEMBERS)
    with pytest.raises(UsageError, match="exists already"):
        write(target, DOCUMENT, WITH_SHARD)
    with open_bundle(target) as bundle:
        assert bundle.id == first
    second = write(target, DOCUMENT, WITH_SHARD, overwrite=True)
    with open_bundle(target) as bundle:
        assert bundle.id == second != first
    assert contents(tmp_path) == ["a.genai"]


@BOTH
def test_a_target_that_comes_up_meanwhile_is_kept(tmp_path: Path, write: Write) -> None:
    target = tmp_path / "a.genai"
    with pytest.raises(UsageError, match="exists already"):
        write(target, DOCUMENT, MEMBERS, before_commit=lambda _: target.write_bytes(b"mine"))
    assert target.read_bytes() == b"mine"
    assert contents(tmp_path) == ["a.genai"]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_bundle(tmp_path / "a.genai", DOCUMENT, MEMBERS)
    assert (tmp_path / "a.genai").read_bytes() == GOOD
    assert contents(tmp_path) == ["a.genai"]


def test_a_reader_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.genai"
    write_bundle(target, DOCUMENT, WITH_SHARD)
    with open_bundle(target) as bundle:
        view = bundle.view(SHARD)
        write_bundle(target, DOCUMENT, {**MEMBERS, SHARD: b"new"}, overwrite=True)
        assert bytes(view) == WITH_SHARD[SHARD]


def test_the_finished_file_is_shown_before_it_counts(tmp_path: Path) -> None:
    seen: list[str] = []

    def look(path: Path) -> None:
        assert path.parent == tmp_path
        assert not (tmp_path / "a.genai").exists()
        with open_bundle(path) as bundle:
            bundle.verify()
            seen.append(bundle.id)

    written = write_bundle(tmp_path / "a.genai", DOCUMENT, WITH_SHARD, before_commit=look)
    assert seen == [written]


@pytest.mark.parametrize("inside", ["notes.txt", "manifest.json"])
def test_only_a_bundle_folder_is_replaced(tmp_path: Path, inside: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / inside).write_bytes(b"precious")
    for write in (write_bundle, write_folder):
        with pytest.raises(UsageError, match="is not replaced"):
            write(home, DOCUMENT, MEMBERS, overwrite=True)
    assert contents(home) == [inside]
    assert contents(tmp_path) == ["home"]


@BOTH
def test_a_folder_that_cannot_be_written(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # the superuser may write anywhere

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open" if write is write_bundle else "mkdir", refuse)
    with pytest.raises(UsageError, match="permission denied"):
        write(folder / "a.genai", DOCUMENT, MEMBERS)
    assert contents(folder) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GenaiError, match=r"No space left on device.*Free some space"):
        write_bundle(tmp_path / "a.genai", DOCUMENT, MEMBERS)
    assert contents(tmp_path) == []


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        write_bundle(tmp_path / "absent" / "a.genai", DOCUMENT, MEMBERS)


@BOTH
@pytest.mark.parametrize(
    ("change", "error"),
    [({"steps": None}, ManifestError), ({"x": 1}, ManifestError), ({"files": {}}, SourceError)],
)
def test_a_manifest_that_a_reader_would_refuse(
    tmp_path: Path, write: Write, change: dict[str, Any], error: type[GenaiError]
) -> None:
    with pytest.raises(error):
        write(tmp_path / "a.genai", DOCUMENT | change, MEMBERS)
    with pytest.raises(ManifestError):
        write(tmp_path / "a.genai", DOCUMENT, {**MEMBERS, "../a": b""})
    assert contents(tmp_path) == []


@BOTH
def test_progress(tmp_path: Path, write: Write) -> None:
    calls: list[tuple[int, int]] = []
    write(tmp_path / "a.genai", DOCUMENT, WITH_SHARD, progress=lambda done, total: calls.append((done, total)))
    total = sum(map(len, WITH_SHARD.values()))
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)


def test_weights_are_streamed(tmp_path: Path) -> None:
    size, piece = 96 << 20, 1 << 20
    shard = Shard(size, [(start, lambda: bytes(piece)) for start in range(0, size, 2 * piece)])
    tracemalloc.start()
    try:
        write_bundle(tmp_path / "a.genai", DOCUMENT, {**MEMBERS, SHARD: shard})
        with open_bundle(tmp_path / "a.genai") as bundle:
            bundle.verify()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
