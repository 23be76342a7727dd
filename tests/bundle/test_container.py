# SPDX-License-Identifier: Apache-2.0
"""Layout, the strict reader of the file form, and the folder form. `test_vectors` has one file for each rule."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_bundle import archive
from genai_bundle.bundle import open_bundle
from genai_bundle.container import open_container
from genai_bundle.digest import unknown_entry
from genai_bundle.directory import read_directory
from genai_bundle.errors import ContainerError, InvalidBundle, UsageError
from genai_bundle.layout import MAX_MANIFEST, MIMETYPE, Layout, plan
from genai_bundle.paths import find_clash, path_problem
from genai_bundle.writer import write_folder
from vectors.containers import DOCUMENT, GOOD, MANIFEST, MEMBERS, ORDERED, SHARD, WITH_SHARD
from vectors.packing import manifest_bytes, pack

GIB = 1 << 30
SEGMENT = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)


def positions(layout: Layout) -> dict[str, tuple[int, int]]:
    return {member.path: (member.header, member.offset) for member in layout.members}


def test_layout_of_a_small_bundle() -> None:
    layout = plan(1000, [("weights/a-00.bin", 10), ("g.onnx", 100), ("weights/b-00.bin", 10), ("docs/a", 0)])
    assert positions(layout) == {
        "mimetype": (0, 38),
        "manifest.json": (128 - 43, 128),
        "docs/a": (1216 - 36, 1216),
        "g.onnx": (1280 - 36, 1280),
        "weights/a-00.bin": (65536 - 46, 65536),
        "weights/b-00.bin": (131072 - 46, 131072),
    }
    assert layout.directory == 131082
    assert layout.total == 131082 + layout.directory_size + 22


def test_layout_with_zip64() -> None:
    """A size of 2^32-1 bytes or more lengthens the local header; an offset or directory there lengthens the end."""
    limit = 0xFFFFFFFF
    below, at = (plan(200, [("weights/a.bin", size), ("weights/b.bin", 1)]) for size in (limit - 1, limit))
    assert [member.header for member in below.members[2:]] == [65536 - 43, 65536 * 2 + 2**32 - 43]
    assert [member.header for member in at.members[2:]] == [65536 - 63, 65536 * 2 + 2**32 - 43]
    assert [member.zip64_size for member in below.members] == [False] * 4
    assert [member.zip64_size for member in at.members] == [False, False, True, False]
    assert [member.zip64_header for member in at.members] == [False, False, False, True]
    assert at.directory_size == below.directory_size + 20
    assert at.zip64_end
    assert at.total == at.directory + at.directory_size + 56 + 20 + 22
    assert not plan(200, [("weights/a.bin", limit - 65536 - 1)]).zip64_end
    assert plan(200, [("weights/a.bin", limit - 65536)]).zip64_end


@given(
    st.dictionaries(
        st.builds("{}{}".format, st.sampled_from(["", "weights/", "docs/"]), SEGMENT),
        st.integers(0, 1 << 34),
        max_size=8,
    ),
    st.integers(2, 100_000),
)
def test_layout_leaves_no_room_for_doubt(files: dict[str, int], manifest: int) -> None:
    layout = plan(manifest, files.items())
    after = 0
    for member in layout.members:
        step = 1 if member.path == "mimetype" else 65536 if member.path.startswith("weights/") else 64
        assert member.offset % step == 0
        assert after <= member.header < after + step
        assert member.header + len(archive.local_header(member, 0)) == member.offset
        after = member.offset + member.size
    assert layout.directory == after
    assert layout.directory + len(archive.directory(layout, [0] * len(layout.members))) == layout.total


def test_a_sparse_file_beyond_four_gibibytes(tmp_path: Path) -> None:
    """Opens in milliseconds, and stock tools see the same members at the same places."""
    members = {"weights/a-00.bin": 5 * GIB, "weights/b-00.bin": 3}
    files: dict[str, dict[str, Any]] = {}
    for path, size in members.items():
        entry = unknown_entry(size, chunked=True)
        files[path] = {"size": size, "sha256": entry.sha256, "chunks": list(entry.chunks or ())}
    for path, data in MEMBERS.items():
        files[path] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    raw = manifest_bytes(DOCUMENT | {"files": files}, {})
    layout = plan(len(raw), [(path, entry["size"]) for path, entry in files.items()])
    content = dict([("mimetype", MIMETYPE), ("manifest.json", raw), *MEMBERS.items(), ("weights/b-00.bin", b"end")])
    crcs = [archive.crc32(content.get(member.path, b"")) for member in layout.members]
    target = tmp_path / "large.genai"
    with target.open("wb") as file:
        for member, crc in zip(layout.members, crcs, strict=True):
            file.seek(member.header)
            file.write(archive.local_header(member, crc) + content.get(member.path, b""))
        file.seek(layout.directory)
        file.write(archive.directory(layout, crcs))
    if target.stat().st_blocks * 512 > GIB:
        target.unlink()
        pytest.skip("this file system keeps no sparse files")
    assert target.stat().st_size == layout.total
    with open_bundle(target) as bundle:
        assert bundle.members["weights/b-00.bin"].offset == 65536 * 3 + 5 * GIB
        assert bundle.read("weights/b-00.bin") == b"end"
    with zipfile.ZipFile(target) as stock:
        assert [info.header_offset for info in stock.infolist()] == [member.header for member in layout.members]
        assert [info.file_size for info in stock.infolist()] == [member.size for member in layout.members]
        assert stock.read("weights/b-00.bin") == b"end"
    if shutil.which("unzip"):
        listing = subprocess.run(["unzip", "-l", str(target)], capture_output=True, text=True, check=True).stdout
        assert str(5 * GIB) in listing


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    target = tmp_path / "a.genai"
    target.write_bytes(GOOD)
    for length in reversed(range(len(GOOD))):
        os.truncate(target, length)
        with pytest.raises(ContainerError) as caught:
            open_bundle(target)
        assert caught.value.rule in ("C1", "C3"), length


def test_every_byte_counts(tmp_path: Path) -> None:
    """No single byte of a bundle can be changed unseen, gaps and headers included."""
    target = tmp_path / "a.genai"
    target.write_bytes(GOOD)
    with target.open("r+b", buffering=0) as file:
        for index, byte in enumerate(GOOD):
            file.seek(index)
            file.write(bytes([byte ^ 0x21]))
            with pytest.raises(InvalidBundle):
                open_bundle(target)
            file.seek(index)
            file.write(bytes([byte]))
    open_bundle(target).close()


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=6), st.integers(0, 6)), max_size=4),
    st.integers(0, len(GOOD)),
)
def test_anything_else_is_refused_and_nothing_else_is_raised(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes, int]], length: int
) -> None:
    data = GOOD
    for at, new, gone in edits:
        data = data[:at] + new + data[at + gone :]
    data = data[:length] if edits and length < 50 else data
    target = tmp_path_factory.getbasetemp() / "fuzz.genai"
    target.write_bytes(data)
    try:
        with open_bundle(target) as bundle:
            bundle.verify()
            assert bundle.read("manifest.json") == MANIFEST
    except InvalidBundle as error:
        assert error.rule  # noqa: PT017
        assert data != GOOD
    else:
        assert data == GOOD


def test_huge_claims_allocate_nothing() -> None:
    """Sizes and counts are believed only when the bytes are there."""
    sizes = (1 << 63).to_bytes(8, "little") * 2
    wide = {"size": 0xFFFFFFFF, "stored": 0xFFFFFFFF, "needed": 45, "central.made": 45, "extra": b"\1\0\x10\0" + sizes}
    lies = [
        pack(ORDERED, {"neg.onnx": wide}),
        pack(ORDERED, end={"here": 65534, "count": 65534}),
        pack(ORDERED, end={"size": 0xFFFFFFFE, "start": 0xFFFFFFFE}),
    ]
    tracemalloc.start()
    try:
        for data in lies:
            with pytest.raises(ContainerError):
                read_directory(memoryview(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000


def test_a_huge_manifest_is_not_parsed(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", DOCUMENT, MEMBERS)
    os.truncate(tmp_path / "a" / "manifest.json", MAX_MANIFEST + 1)
    with pytest.raises(ContainerError) as caught:
        open_bundle(tmp_path / "a")
    assert caught.value.rule == "C32"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "a", DOCUMENT, WITH_SHARD)
    return tmp_path / "a"


def refused(folder: Path) -> str | None:
    with pytest.raises(ContainerError) as caught:
        open_bundle(folder)
    return caught.value.rule


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
@pytest.mark.parametrize("name", ["docs/notes.txt", "docs", "docs/more.txt", "mimetype"])
def test_a_folder_with_a_link(folder: Path, name: str) -> None:
    (folder.parent / "aside").mkdir()
    if (folder / name).exists():
        (folder / name).rename(folder.parent / "aside" / "moved")
    (folder / name).symlink_to(folder.parent / "aside" / "moved")
    assert refused(folder) == "F1"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders there")
def test_a_folder_with_a_pipe(folder: Path) -> None:
    """Opening a pipe would wait for ever."""
    (folder / "docs" / "notes.txt").unlink()
    os.mkfifo(folder / "docs" / "notes.txt")
    assert refused(folder) == "F2"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders there")
def test_a_pipe_for_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.genai")
    assert refused(tmp_path / "a.genai") == "F2"


def test_a_folder_with_an_empty_folder(folder: Path) -> None:
    (folder / "docs" / "more").mkdir()
    assert refused(folder) == "F3"


def test_a_folder_with_a_hidden_file(folder: Path) -> None:
    (folder / ".hidden").write_bytes(b"")
    assert refused(folder) == "C20"


def test_names_are_shown_without_control_characters(folder: Path) -> None:
    if os.name == "nt":
        pytest.skip("no such names there")
    (folder / "a\x1b[31m").write_bytes(b"")
    with pytest.raises(ContainerError) as caught:
        open_bundle(folder)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.genai", "absent/a.genai"])
def test_nothing_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_bundle(tmp_path / name)


def test_an_empty_folder_is_no_bundle(tmp_path: Path) -> None:
    assert refused(tmp_path) == "C30"


def test_a_link_to_a_bundle_file_is_followed(tmp_path: Path) -> None:
    """Caches of downloads hold a link for each file."""
    if os.name == "nt":
        pytest.skip("links need a privilege there")
    (tmp_path / "blob").write_bytes(GOOD)
    (tmp_path / "a.genai").symlink_to("blob")
    with open_bundle(tmp_path / "a.genai") as bundle:
        assert bundle.form == "file"


def test_advice_is_harmless(folder: Path) -> None:
    container = open_container(folder)
    for advice in ("SEQUENTIAL", "WILLNEED", "NO_SUCH_ADVICE"):
        container.advise(SHARD, advice)
    container.close()


@pytest.mark.parametrize("path", ["a", "a.b", "weights/a-00.bin", "A_b/c.d.e", "console", "com", "a..b", "x" * 200])
def test_good_paths(path: str) -> None:
    assert path_problem(path) is None


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("", "0 characters"),
        ("x" * 201, "201 characters"),
        ("/a", "absolute"),
        ("a//b", "empty segment"),
        ("a/", "empty segment"),
        ("a/../b", "leaves the bundle"),
        (".a", "begins with a dot"),
        ("a.", "ends in one"),
        ("a/nul", "device on Windows"),
        ("COM1.txt", "device on Windows"),
        ("a b", "other characters"),
        ("a\n", "other characters"),
        ("ä", "other characters"),
        ("a\\b", "other characters"),
        ("a:b", "other characters"),
    ],
)
def test_bad_paths(path: str, problem: str) -> None:
    assert problem in (path_problem(path) or "")


@pytest.mark.parametrize(
    ("paths", "clash"),
    [
        (["a", "b", "a/b"], ("a/b", "a")),
        (["a/b", "a"], ("a", "a/b")),
        (["a/b", "A/c"], ("A/c", "a/b")),
        (["a", "A"], ("A", "a")),
        (["a/b/c", "a/B"], ("a/B", "a/b/c")),
        (["a/b", "a/c", "b/a", "a.b"], None),
    ],
)
def test_clashes(paths: list[str], clash: tuple[str, str] | None) -> None:
    assert find_clash(paths) == clash
