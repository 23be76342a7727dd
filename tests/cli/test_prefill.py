# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle prefill``: what is kept, shown, used by `run`, and deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.samples import command, doubler
from genai_runner import saved_prefixes

SYSTEM = "You are a bear who lives in the big green forest and likes honey. Answer briefly."


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "prefixes"

    def made(_: str) -> Path:
        folder.mkdir(exist_ok=True)
        return folder

    monkeypatch.setattr(saved_prefixes, "cache_folder", made)  # what engines were found to compute stays known
    return folder


def hits(*arguments: Any) -> tuple[str, int]:
    done = command("run", *arguments, "--max-tokens", "4", "--json", "--stats").json
    return done["text"], done["stats"]["metrics"]["prefix_cache_hits"]


def test_prefill_list_run_remove(sample: Path, tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "rules.txt"
    file.write_text(SYSTEM + "\n")
    made = command("prefill", sample, "--system", file, "--json").json
    shown = command("prefill", "--list").out
    assert made["id"] in shown
    assert "You are a bear" in shown
    asked = (sample, "--system", SYSTEM, "--message", "Who are you?")
    text, count = hits(*asked)
    assert count == made["tokens"] > 10
    assert hits(*asked, "--no-saved-prefixes") == (text, 0)
    file.write_text("Once upon a time there was a little girl who had")
    assert command("prefill", sample, "--prompt", file).code == 0
    listed = command("prefill", sample, "--list", "--json").json["prefixes"]
    assert sorted(one["bundle"] for one in listed) == [listed[0]["bundle"]] * 2
    assert all(Path(one["file"]).stat().st_size == one["bytes"] for one in listed)
    assert command("prefill", "--remove", made["id"]).out == "removed 1\n"
    assert hits(*asked)[1] < made["tokens"]
    assert command("prefill", "--clear", "--json").json["removed"][0]["id"] != made["id"]
    assert not folder.exists()
    assert command("prefill", "--list").err == "nothing is kept\n"


def test_what_is_wrong_is_one_line(sample: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps({"a": 1}))
    cases: list[tuple[list[Any], str]] = [
        ([], "not one thing to do"),
        ([sample, "--list", "--clear"], "not one thing to do"),
        (["--system-text", "x"], "no bundle"),
        ([sample, "--system-text", "x", "--tools", tools], "not a list of functions"),
        ([sample, "--prompt", tools, "--tools", tools], "--tools go with"),
        ([sample, "--remove", "abc"], "nothing is kept under the id 'abc'"),
        ([doubler(tmp_path / "d.genai"), "--prompt", tools], "takes no text"),
    ]
    for arguments, message in cases:
        done = command("prefill", *arguments)
        assert (done.code, done.err.count("\n"), message in done.err) == (2, 1, True), done.err
