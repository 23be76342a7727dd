# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle verify``: what is checked, what the report says, and the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.samples import Done, command, doubler, talker

VALID = Path(__file__).parents[1] / "vectors" / "v1" / "valid"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talker(tmp_path_factory.mktemp("verify") / "talker.genai")


def golden(done: Done) -> list[tuple[str, str | None, str]]:
    """(backend, variant, status) of the golden vectors in a JSON report."""
    checks: list[dict[str, Any]] = done.json["checks"]
    return [(check["backend"], check["variant"], check["status"]) for check in checks if check["backend"] is not None]


def test_a_sound_bundle(bundle: Path) -> None:
    done = command("verify", bundle)
    assert done.code == 0
    for words in ("container", "schema", "pipeline", "graphs", "digests", "counts: tokens", "portable", "ort-cpu"):
        assert words in done.out, words
    assert "FAILED" not in done.out


def test_every_variant_of_the_backend_runs(bundle: Path) -> None:
    found = golden(command("verify", bundle, "--json"))
    assert found == [("onnxruntime", "portable", "ok"), ("onnxruntime", "ort-cpu", "ok")]


def test_all_backends_say_what_is_not_installed(bundle: Path) -> None:
    done = command("verify", bundle, "--backend", "all", "--json")
    assert (done.code, done.json["ok"]) == (0, True)
    found = golden(done)
    assert ("reference", "portable", "ok") in found
    assert ("onnxruntime", "ort-cpu", "ok") in found
    assert not [row for row in found if row[0] in ("scripted", "base")]


def test_all_backends_run_both_forms_of_the_container(bundle: Path, tmp_path: Path) -> None:
    assert command("unpack", bundle, tmp_path / "folder").code == 0
    for given in (bundle, tmp_path / "folder"):
        done = command("verify", given, "--backend", "all", "--json")
        rows = [(row["form"], row["backend"], row["variant"], row["status"]) for row in done.json["checks"]]
        for form in ("file", "folder"):
            for backend, variant in (
                ("onnxruntime", "portable"),
                ("onnxruntime", "ort-cpu"),
                ("reference", "portable"),
            ):
                assert (form, backend, variant, "ok") in rows
        assert [row["detail"] for row in done.json["checks"] if row["check"] == "other form"] == ["the same id"]


def test_all_backends_differ_by_what_is_said(bundle: Path) -> None:
    """Of ids there is no difference, of the scores that they were taken from there is."""
    rows = command("verify", bundle, "--backend", "all", "--json").json["checks"]
    first, *others = [row["difference"] for row in rows if row["backend"] and row["status"] == "ok"]
    assert first is None
    assert others
    assert all(0 <= difference < 1e-5 for difference in others)


def test_forms_are_a_choice(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forms(*options: str) -> set[str]:
        return {row["form"] for row in command("verify", bundle, "--json", *options).json["checks"] if row["backend"]}

    assert forms() == {"file"}
    assert forms("--forms", "both") == {"file", "folder"}
    assert forms("--backend", "all", "--forms", "given") == {"file"}
    monkeypatch.setattr("genai_bundle.cli.verify.LARGE", 10)
    done = command("verify", bundle, "--backend", "all")
    assert (done.code, "--forms both makes it" in " ".join(done.out.split())) == (0, True)
    assert forms("--backend", "all") == {"file"}
    assert command("verify", bundle, "--forms", "all").code == 2


def test_a_variant_of_another_device_is_not_run(tmp_path: Path) -> None:
    variant = {"name": "gpu", "when": {"backend": "onnxruntime", "device": "cuda"}, "file": "decoder.ort-cpu.onnx"}
    path = talker(tmp_path / "x.genai", graphs={"decoder": {"file": "decoder.onnx", "variants": [variant]}})
    assert golden(command("verify", path, "--json")) == [("onnxruntime", "portable", "ok")]
    assert command("verify", path, "--device", "cuda").code == 5
    done = command("verify", path, "--device", "cuda", "--backend", "all")
    assert (done.code, "no installed backend ran them" in done.out) == (5, True)


def test_fast_arithmetic_has_bounds_of_its_own(tmp_path: Path) -> None:
    """The second id is not the best one: its score is some way below."""
    test = {"name": "near", "in": {"prompt": "five"}, "out": {"tokens": [[6, 5]]}, "compare": "tokens"}
    for bound, code in ((2.0, 0), (0.001, 4)):
        path = talker(tmp_path / f"{bound}.genai", tests=[test | {"fast": bound}])
        assert command("verify", path).code == 4
        assert command("verify", path, "--precision", "fast").code == code
    assert command("verify", path, "--precision", "quick").code == 2


def test_one_variant(bundle: Path) -> None:
    found = golden(command("verify", bundle, "--variant", "ort-cpu", "--backend", "all", "--json"))
    assert ("onnxruntime", "ort-cpu", "ok") in found
    assert ("reference", None, "skipped") in found
    assert command("verify", bundle, "--variant", "fast").code == 2
    assert command("verify", bundle, "--backend", "abacus").code == 2


def test_a_wrong_golden_vector_is_exit_code_4(tmp_path: Path) -> None:
    test = {"name": "wrong", "in": {"prompt": "five"}, "out": {"tokens": [[6, 7, 7]]}, "compare": "tokens"}
    done = command("verify", talker(tmp_path / "x.genai", tests=[test]))
    assert done.code == 4
    assert "FAILED" in done.out
    assert command("verify", tmp_path / "x.genai", "--json").json["ok"] is False


def test_the_largest_difference_is_shown(tmp_path: Path) -> None:
    path = doubler(
        tmp_path / "x.genai", tests=[{"in": {"sound": [1.0]}, "out": {"louder": [2.25]}, "compare": {"abs": 0.5}}]
    )
    done = command("verify", path)
    assert done.code == 0
    assert "0.25" in done.out


def test_no_golden_vectors_is_said(tmp_path: Path) -> None:
    done = command("verify", talker(tmp_path / "x.genai", tests=[]))
    assert done.code == 0
    assert "nothing was run" in done.out


def test_the_values_of_a_vector_may_be_members(tmp_path: Path) -> None:
    members = {"tests/talk.json": b'[{"role": "user", "content": "five"}]', "tests/said.txt": b"six seven"}
    vector = {"in": {"messages": {"file": "tests/talk.json"}}, "out": {"text": {"file": "tests/said.txt"}}}
    done = command("verify", talker(tmp_path / "x.genai", members, tests=[vector]))
    assert done.code == 0, done.out


def test_a_newer_minor_version_is_not_held_against_the_older_schema() -> None:
    done = command("verify", VALID / "newer-minor" / "bundle.genai", "--json")
    assert done.code == 0
    assert [check["status"] for check in done.json["checks"] if check["check"] == "schema"] == ["skipped"]


def test_an_invalid_bundle_is_exit_code_3(bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[data.rindex(b"content")] ^= 1  # in the chat template or the tokenizer
    (tmp_path / "damaged.genai").write_bytes(data)
    done = command("verify", tmp_path / "damaged.genai")
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1)
    report = command("verify", tmp_path / "damaged.genai", "--json")
    assert (report.code, report.json["ok"]) == (3, False)
