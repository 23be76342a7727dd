# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle unpack`` and ``pack``: there and back without a changed byte, and nothing written elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.samples import command, talker


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return talker(tmp_path / "talker.genai")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_and_back_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    assert command("unpack", bundle, tmp_path / "folder").code == 0
    done = command("pack", tmp_path / "folder", "-o", tmp_path / "again.genai")
    assert done.code == 0
    assert (tmp_path / "again.genai").read_bytes() == bundle.read_bytes()
    assert done.out.strip() == command("inspect", bundle, "--json").json["id"]


def test_a_signature_goes_there_and_back(bundle: Path, tmp_path: Path) -> None:
    command("unpack", bundle, tmp_path / "folder")
    (tmp_path / "folder" / "model.sig").write_bytes(b"statement")
    assert command("pack", tmp_path / "folder", "-o", tmp_path / "signed.genai").code == 0
    command("unpack", tmp_path / "signed.genai", tmp_path / "again")
    assert (tmp_path / "again" / "model.sig").read_bytes() == b"statement"


def test_the_folder_runs_as_the_file_does(bundle: Path, tmp_path: Path) -> None:
    command("unpack", bundle, tmp_path / "folder")
    assert command("run", tmp_path / "folder", "five").out == command("run", bundle, "five").out == "six seven\n"


def test_nothing_is_written_beside_the_target(bundle: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    command("unpack", bundle, tmp_path / "folder")
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("folder/")} == before
    names = set(tree(tmp_path / "folder"))
    assert names == {
        "mimetype",
        "manifest.json",
        "decoder.onnx",
        "decoder.ort-cpu.onnx",
        "tokenizer.json",
        "chat.jinja",
    }


def test_an_empty_folder_may_exist(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert command("unpack", bundle, tmp_path / "folder").code == 0


def test_a_folder_with_anything_else_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert command("unpack", bundle, tmp_path / "mine").code == 2
    assert command("unpack", bundle, tmp_path / "mine", "--force").code == 2
    assert tree(tmp_path / "mine") == {"letter.txt": b"dear"}


def test_force_replaces_a_bundle_folder(bundle: Path, tmp_path: Path) -> None:
    other = talker(tmp_path / "other.genai", name="other")
    command("unpack", other, tmp_path / "folder")
    assert command("unpack", bundle, tmp_path / "folder").code == 2
    assert command("unpack", bundle, tmp_path / "folder", "--force").code == 0
    assert command("inspect", tmp_path / "folder", "--json").json["name"] == "talker"


def test_pack_does_not_replace_a_file_unasked(bundle: Path, tmp_path: Path) -> None:
    command("unpack", bundle, tmp_path / "folder")
    target = tmp_path / "taken.genai"
    target.write_bytes(b"mine")
    assert command("pack", tmp_path / "folder", "-o", target).code == 2
    assert target.read_bytes() == b"mine"
    assert command("pack", tmp_path / "folder", "-o", target, "--force").code == 0
    assert target.read_bytes() == bundle.read_bytes()


def test_pack_refuses_a_target_inside_its_source(bundle: Path, tmp_path: Path) -> None:
    command("unpack", bundle, tmp_path / "folder")
    before = tree(tmp_path / "folder")
    assert command("pack", tmp_path / "folder", "-o", tmp_path / "folder" / "new.genai").code == 2
    assert tree(tmp_path / "folder") == before


@pytest.mark.parametrize("name", ["chat.jinja", "decoder.onnx"])
def test_a_changed_member_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    command("unpack", bundle, tmp_path / "folder")
    changed = bytearray((tmp_path / "folder" / name).read_bytes())
    changed[-1] ^= 1
    (tmp_path / "folder" / name).write_bytes(changed)
    done = command("pack", tmp_path / "folder", "-o", tmp_path / "new.genai")
    assert done.code == 3
    assert name in done.err
    assert not (tmp_path / "new.genai").exists()
