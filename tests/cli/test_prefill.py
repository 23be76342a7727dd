# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle prefill``: what is kept, shown, used by `run`, and deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.samples import command, doubler
from genai_bundle.bundle import open_bundle
from genai_bundle.cli.copying import checked_parts
from genai_bundle.writer import write_bundle
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


def test_prefixes_inside_the_bundle(sample: Path, tmp_path: Path, folder: Path) -> None:
    rules, new = tmp_path / "rules.txt", tmp_path / "with rules.genai"
    rules.write_text(SYSTEM + "\n")
    before = sample.read_bytes()
    made = command("prefill", sample, "--system", rules, "-o", new, "--json").json
    assert (made["inside"], made["file"], list(folder.glob("*"))) == (True, str(new), [])
    asked = ("--system", SYSTEM, "--message", "Who are you?")
    text, count = hits(new, *asked)
    assert count == made["tokens"] > 10
    assert (hits(sample, *asked), hits(new, *asked, "--no-saved-prefixes")) == ((text, 0), (text, 0))
    kept = command("prefill", new, "--prompt", rules, "--json").json  # of the bundle without prefixes, so of both
    assert hits(sample, SYSTEM)[1] == hits(new, SYSTEM)[1] == kept["tokens"]
    listed = command("prefill", new, "--list", "--json").json["prefixes"]
    assert [(one["id"], one["inside"]) for one in listed] == [(made["id"], True), (kept["id"], False)]
    assert "inside" in command("prefill", new, "--list").out
    assert "lies in the bundle itself" in command("prefill", new, "--remove", made["id"]).err
    assert command("prefill", new, "--remove", made["id"], "-o", new, "--force").out == "removed 1\n"
    assert new.read_bytes() == before == sample.read_bytes()


def test_nothing_is_written_where_something_is_wrong(sample: Path, tmp_path: Path) -> None:
    new, unpacked, damaged = tmp_path / "new.genai", tmp_path / "unpacked", tmp_path / "damaged.genai"
    command("unpack", sample, unpacked)
    data = bytearray(sample.read_bytes())
    data[-70_000] ^= 1  # a weight
    damaged.write_bytes(data)
    text = ("--system-text", SYSTEM)
    cases: list[tuple[list[Any], int, str]] = [
        ([sample, *text, "-o", damaged], 2, "exists already"),
        ([sample, *text, "-o", unpacked, "--force"], 2, "exists already"),
        ([sample, *text, "-o", tmp_path / "no" / "new.genai"], 2, "there is no folder"),
        ([unpacked, *text, "-o", unpacked / "new.genai"], 2, "lies inside the folder"),
        ([sample, *text, "--force"], 2, "--force goes with -o"),
        ([sample, "--list", "-o", new], 2, "-o goes with"),
        ([sample, "--remove", "abc", "-o", new], 2, "holds no prefix 'abc'"),
        ([doubler(tmp_path / "d.genai"), *text, "-o", new], 2, "takes no messages"),
        ([sample, *text, "--adapter", "pirate", "-o", new], 2, "no adapter 'pirate'"),
        ([damaged, *text, "-o", new], 3, "differ from the manifest's digest"),
    ]
    names = sorted(tmp_path.iterdir())
    for arguments, code, message in cases:
        done = command("prefill", *arguments)
        assert (done.code, done.err.count("\n"), message in done.err) == (code, 1, True), done.err
    assert sorted(tmp_path.iterdir()) == names
    assert damaged.read_bytes() == data


def test_a_signature_is_left_out(sample: Path, tmp_path: Path) -> None:
    signed, new = tmp_path / "signed.genai", tmp_path / "new.genai"
    with open_bundle(sample) as bundle:
        manifest, members = checked_parts(bundle)
        write_bundle(signed, manifest, {**members, "model.sig": b"signed"})
    done = command("prefill", signed, "--system-text", SYSTEM, "-o", new)
    assert (done.code, done.err.count("\n"), "signature was left out" in done.err) == (0, 1, True)
    with open_bundle(new) as bundle:
        assert "model.sig" not in bundle.members


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
