# SPDX-License-Identifier: Apache-2.0
"""Every example is short and does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import EXAMPLES

MAKERS = {"make_tiny_stories.py", "tiny_stories_text.py"}  # they make the sample; tests/examples trains a small one
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.name not in MAKERS)


def run(script: Path, *arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120)
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
