# SPDX-License-Identifier: Apache-2.0
"""Nothing in a foreign configuration is passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genai_bundle.errors import SourceError
from genai_bundle.importers.foreign import Section, dropped_lines, read_section, settle

VALUES = {
    "type": "gpt2",
    "decoder": {"filename": "model.onnx", "novel": True, "parts": [{"id": "a"}, {"id": "b", "odd": "x" * 50}]},
    "beams": 1,
    "odd": None,
}


def section() -> Section:
    found = Section(VALUES, "config.json")
    assert found.text("type") == "gpt2"
    inner = found.section("decoder")
    assert inner.text("filename") == "model.onnx"
    assert [part.text("id") for part in inner.sections("parts")] == ["a", "b"]
    return found


def test_every_key_that_nobody_asked_for_is_named_in_one_error() -> None:
    with pytest.raises(SourceError) as caught:
        settle([section()], allow_lossy=False)
    assert "config.json: decoder.novel = True, decoder.parts[1].odd, beams = 1, odd = None" in str(caught.value)
    assert "--allow-lossy" in str(caught.value)


def test_a_lossy_import_says_what_it_drops() -> None:
    dropped = settle([section()], allow_lossy=True)
    assert dropped == {"config.json": ["decoder.novel", "decoder.parts[1].odd", "beams", "odd"]}
    assert dropped_lines(dropped)[0] == "dropped, not understood: decoder.novel (config.json)"


def test_what_is_all_understood_passes() -> None:
    found = Section({"beams": 1, "threads": 4}, "config.json")
    found.only("beams", 1)
    assert found.ignore("threads", "absent") == ["threads"]
    assert settle([found], allow_lossy=False) == {}


def test_a_value_that_changes_something_is_not_ignored() -> None:
    found = Section({"beams": 4}, "config.json")
    found.only("beams", 1)
    with pytest.raises(SourceError, match="beams = 4"):
        settle([found], allow_lossy=False)


@pytest.mark.parametrize(
    ("getter", "value"),
    [("text", 1), ("count", -1), ("count", True), ("count", 1.5), ("number", "1"), ("flag", 1), ("ids", [1, "2"]),
     ("ids", -1), ("texts", "a"), ("section", []), ("sections", {})],
)  # fmt: skip
def test_a_value_of_another_type_names_file_and_key(getter: str, value: object) -> None:
    found = Section({"inner": {"key": value}}, "config.json").section("inner")
    with pytest.raises(SourceError, match=r"config\.json: inner\.key: is .*, expected"):
        getattr(found, getter)("key")


def test_absent_and_null_are_the_default() -> None:
    found = Section({"null": None}, "config.json")
    assert [found.text("null", "x"), found.count("absent", 3), found.number("null", 1.5)] == ["x", 3, 1.5]
    assert (found.ids("null"), found.texts("absent"), found.flag("absent")) == ([], [], False)
    assert list(found.section("null").unknown()) == []


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"ids": [1, 2], "eos": 3}))
    found = read_section(tmp_path / "a.json")
    assert found is not None
    assert (found.ids("ids"), found.ids("eos")) == ([1, 2], [3])
    assert read_section(tmp_path / "b.json") is None
    with pytest.raises(SourceError, match="missing"):
        read_section(tmp_path / "b.json", required=True)
