# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle export``: a folder or a plain refusal, and never half of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.samples import command, doubler, talker
from genai_bundle import exports


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return talker(tmp_path / "talker.genai", {"docs/LICENSE": b"free"})


def test_it_says_what_was_written_and_left_out(bundle: Path, tmp_path: Path) -> None:
    done = command("export", bundle, "--to", "folder", "-o", tmp_path / "out")
    assert done.code == 0
    assert str(tmp_path / "out") in done.out
    assert "form 'portable'" in done.out
    assert "left out: tests: 1 golden vectors" in done.err
    assert (tmp_path / "out" / "docs" / "LICENSE").read_bytes() == b"free"
    facts = command("export", bundle, "--to", "folder", "-o", tmp_path / "o2", "--variant", "ort-cpu", "--json").json
    assert (facts["target"], facts["variant"]) == ("folder", "ort-cpu")
    assert facts["size"] == sum(path.stat().st_size for path in (tmp_path / "o2").rglob("*") if path.is_file())
    assert facts["lost"]


def test_the_folder_form_is_exported_alike(bundle: Path, tmp_path: Path) -> None:
    command("unpack", bundle, tmp_path / "unpacked")
    for source, target in ((bundle, "a"), (tmp_path / "unpacked", "b")):
        assert command("export", source, "--to", "folder", "-o", tmp_path / target).code == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in names
        if (tmp_path / "a" / name).is_file()
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "openqino"], "Known: folder, openvino, ort-genai"),
        (["--to", "folder", "--variant", "fast"], "It has portable, ort-cpu"),
        (["--to", "ort-genai"], "do not count layers"),
        ([], "--to"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], words: str, bundle: Path, tmp_path: Path) -> None:
    done = command("export", bundle, "-o", tmp_path / "out", *arguments)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["talker.genai"]


def test_only_an_exported_folder_is_replaced(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("export", bundle, "--to", "folder", "-o", out)
    assert command(*arguments).code == 0
    assert command(*arguments).code == 2
    (out / "stray").write_text("old")
    assert command(*arguments, "--force").code == 0
    assert not (out / "stray").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    done = command("export", bundle, "--to", "folder", "-o", mine, "--force")
    assert done.code == 2
    assert "no folder of an export" in done.err
    assert (mine / "letter.txt").read_text() == "dear"


def test_a_damaged_bundle_is_refused_and_leaves_nothing(sample: Path, tmp_path: Path) -> None:
    command("unpack", sample, tmp_path / "folder")
    shard = tmp_path / "folder" / "weights" / "decoder-00.bin"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert command("export", tmp_path / "folder", "--to", "ort-genai", "-o", tmp_path / "out").code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_interrupt_leaves_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exports, "blocks", stop)
    assert command("export", bundle, "--to", "folder", "-o", tmp_path / "out").code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["talker.genai"]


def test_a_bundle_without_text_goes_into_a_folder_only(tmp_path: Path) -> None:
    bundle = doubler(tmp_path / "doubler.genai")
    assert command("export", bundle, "--to", "folder", "-o", tmp_path / "out").code == 0
    done = command("export", bundle, "--to", "ort-genai", "-o", tmp_path / "other")
    assert done.code == 2
    assert "not just a prompt that one graph continues" in done.err
