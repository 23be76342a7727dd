# SPDX-License-Identifier: Apache-2.0
"""Every example is short and does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import genai_runner
from conftest import EXAMPLES, SAMPLE

MAKERS = {"make_tiny_stories.py", "tiny_stories_text.py"}  # these make the sample
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.name not in MAKERS)


def run(script: Path, *arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, cwd=cwd, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_examples_have_at_most_forty_lines(script: Path) -> None:
    assert len(script.read_text("utf-8").splitlines()) <= 40


def test_chat_answers(tmp_path: Path) -> None:
    answers = run(EXAMPLES / "chat.py", "What is 2 + 3?", cwd=tmp_path).splitlines()
    assert answers[0] == "> What is 2 + 3?"
    assert "5" in answers[1]


def test_choices_differ_and_begin_with_the_prompt(tmp_path: Path) -> None:
    lines = run(EXAMPLES / "choices.py", "Once upon a time", cwd=tmp_path).splitlines()
    assert len({line[8:] for line in lines}) == 3
    assert all(line[8:].startswith("Once upon a time") for line in lines)


def test_many_requests_give_what_they_give_alone(tmp_path: Path) -> None:
    prompts = ["Once upon a time", "The sun"]
    lines = run(EXAMPLES / "many.py", *prompts, cwd=tmp_path)
    with genai_runner.load(SAMPLE) as pipe:
        for prompt in prompts:
            assert prompt + pipe(prompt, max_tokens=20, temperature=0).text in lines


ENGINES = {"onnxruntime-genai": [pytest.mark.peers], "openvino-genai": [pytest.mark.peers, pytest.mark.torch]}


@pytest.mark.parametrize("engine", [pytest.param(name, marks=marks) for name, marks in ENGINES.items()])
def test_one_word_switches_engines(engine: str, tmp_path: Path) -> None:
    ours, theirs = (run(EXAMPLES / "engines.py", name, cwd=tmp_path).splitlines() for name in ("genai-bundle", engine))
    assert (ours[0], theirs[0]) == ("[genai-bundle]", f"[{engine}]")
    assert ours[1:] == theirs[1:]
    assert "2 + 3 = 5" in ours[-1]


def test_the_engines_example_runs_without_other_stacks(tmp_path: Path) -> None:
    assert "[genai-bundle]" in run(EXAMPLES / "engines.py", cwd=tmp_path)


@pytest.mark.torch
def test_the_sample_is_made_by_its_script(tmp_path: Path) -> None:
    """Two steps of training teach nothing, but go the whole way: text, tokenizer, checkpoint, proof, bundle."""
    options = ("--steps", "2", "--no-questions", "--output", str(tmp_path / "x.genai"))
    run(EXAMPLES / "make_tiny_stories.py", *options, cwd=tmp_path)
    with genai_runner.load(tmp_path / "x.genai") as made, genai_runner.load(SAMPLE) as sample:
        assert (tmp_path / "x.genai").stat().st_size <= 3_000_000
        assert SAMPLE.stat().st_size <= 3_000_000
        assert made.bundle.read("tokenizer.json") == sample.bundle.read("tokenizer.json")
        assert made.bundle.read("chat_template.jinja") == sample.bundle.read("chat_template.jinja")
        assert made.manifest.inputs == sample.manifest.inputs
