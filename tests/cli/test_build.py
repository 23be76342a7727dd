# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle build``: which builder is chosen, what is printed, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.samples import command

RECIPE = """
name: tripler
graphs:
  triple:
    onnx: |
      triple (float[n] x) => (float[n] y) { three = Constant <value = float {3.0}> () y = Mul (x, three) }
inputs: {x: "f32[N]"}
outputs: {y: "f32[N]"}
steps:
- {run: triple, in: {x: x}, out: {y: y}}
- emit: {y: y}
tests:
- {in: {x: [1.0, 2.0]}, out: {y: [3.0, 6.0]}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_a_recipe_becomes_a_bundle_that_runs(recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "tripler.genai"
    done = command("build", recipe, "-o", target)
    assert (done.code, done.err) == (0, "")
    assert str(target) in done.out
    assert "sha256:" in done.out
    assert command("run", target, "--input", "x=[5]").out == "y: float32[1] [15.0]\n"


def test_the_report_says_what_was_proved_and_how_large_it_is(recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.genai"
    _, *lines = command("build", recipe, "-o", target).out.splitlines()
    rows = dict(line.split(maxsplit=1) for line in lines)
    assert rows["source"].rstrip() == "a recipe"
    assert rows["proved"].rstrip() == "portable"
    assert rows["size"].startswith("graphs ")
    found = command("build", recipe, "-o", target, "--force", "--json").json["report"]
    assert found["proved"] == {"portable": None}
    assert sum(found["sizes"].values()) == sum(
        one["size"] for one in command("inspect", target, "--json").json["members"]
    )


def test_json_and_details(recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.genai"
    names = ["--name", "named", "--license", "MIT", "--description", "made by a test"]
    found = command("build", recipe, "-o", target, "--json", *names).json
    assert found["size"] == target.stat().st_size
    facts = command("inspect", target, "--json").json
    assert facts["id"] == found["id"]
    assert (facts["name"], facts["license"], facts["description"]) == ("named", "MIT", "made by a test")


def test_an_existing_file_is_kept_without_force(recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.genai"
    target.write_bytes(b"mine")
    assert command("build", recipe, "-o", target).code == 2
    assert target.read_bytes() == b"mine"
    assert command("build", recipe, "-o", target, "--force").code == 0
    first = target.read_bytes()
    assert command("build", recipe, "-o", target, "--force").code == 0
    assert target.read_bytes() == first


def test_a_wrong_test_refuses_the_build(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace("6.0", "7.0"), encoding="utf-8")
    done = command("build", recipe, "-o", tmp_path / "x.genai")
    assert (done.code, done.err.count("\n")) == (4, 1)
    assert not (tmp_path / "x.genai").exists()


def test_a_source_that_is_neither(tmp_path: Path) -> None:
    target = tmp_path / "x.genai"
    assert command("build", tmp_path / "absent", "-o", target).code == 2
    (tmp_path / "model.bin").write_bytes(b"")
    assert "neither a folder" in command("build", tmp_path / "model.bin", "-o", target).err


@pytest.mark.shared
def test_without_torch_one_line_says_what_to_install(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genai_bundle.builder.from_checkpoint.find_spec", lambda name: None)
    done = command("build", shared / "checkpoints" / "stories260K", "-o", tmp_path / "x.genai")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert 'pip install "genai-bundle[build]"' in done.err


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    done = command("build", tmp_path, "-o", tmp_path / "x.genai")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "config.json" in done.err
