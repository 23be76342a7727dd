# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle diff``: a table, JSON, and an exit code that scripts can ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.samples import command, doubler, talker


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    other = talker(
        tmp_path / "b.genai", {"chat.jinja": b"Hello\n", "docs/NEW.md": b"new"}, name="walker", license="MIT"
    )
    return talker(tmp_path / "a.genai"), other


def test_the_same_bundle_in_either_form(pair: tuple[Path, Path], tmp_path: Path) -> None:
    first, _ = pair
    command("unpack", first, tmp_path / "folder")
    done = command("diff", first, tmp_path / "folder")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("the same bundle: sha256:")
    assert command("diff", tmp_path / "folder", first, "--json").json["equal"] is True


def test_differences_are_a_table_and_an_exit_code(pair: tuple[Path, Path]) -> None:
    done = command("diff", *pair)
    assert done.code == 6
    for words in (
        '~  license  "Apache-2.0" → "MIT"', '~  name     "talker" → "walker"', "+  docs/NEW.md", "~  chat.jinja",
        "chat template", "+Hello",
    ):  # fmt: skip
        assert words in done.out, words
    assert "weights" not in done.out


def test_json_has_every_part(pair: tuple[Path, Path]) -> None:
    done = command("diff", *pair, "--json")
    assert done.code == 6
    found = done.json
    assert found["equal"] is False
    assert [change["path"] for change in found["manifest"]] == ["license", "name"]
    assert [(one["path"], one["change"]) for one in found["members"]] == [
        ("chat.jinja", "changed"), ("docs/NEW.md", "added"),
    ]  # fmt: skip
    assert (found["graphs"], found["tensors"], found["tokenizer"]) == ([], [], {})


def test_long_parts_are_cut_unless_asked_for(pair: tuple[Path, Path], tmp_path: Path) -> None:
    lines = "".join(f"line {number}\n" for number in range(60)).encode()
    other = talker(tmp_path / "c.genai", {"chat.jinja": lines})
    done = command("diff", pair[0], other)
    assert "more; --full shows them" in done.out
    assert "line 59" not in done.out
    assert "line 59" in command("diff", pair[0], other, "--full").out


def test_pipelines_that_have_nothing_in_common(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = command("diff", pair[0], doubler(tmp_path / "doubler.genai"))
    assert done.code == 6
    assert "[double]" in done.out


@pytest.mark.parametrize("order", [0, 1])
def test_what_is_no_bundle_is_an_error_and_no_difference(order: int, pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "not.genai").write_bytes(b"PK no")
    sides = [pair[0], tmp_path / "not.genai"]
    assert command("diff", *(sides if order else sides[::-1])).code == 3
    assert command("diff", pair[0], tmp_path / "absent.genai").code == 2
    assert command("diff", pair[0]).code == 2
