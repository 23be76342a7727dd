# SPDX-License-Identifier: Apache-2.0
"""The documents say what the program does. `python tests/test_docs.py` writes docs/cli.md and README's output anew."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from genai_bundle.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
CLI = ROOT / "docs" / "cli.md"
PROGRAM: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = PROGRAM.commands
INTRODUCTION = """\
# The command `genai-bundle`

Written by `python tests/test_docs.py` from the program itself; a test compares the two.

Every command takes `--help`. `genai-bundle --debug COMMAND ...` shows the traceback of an error,
`genai-bundle --version` the version, and `genai-bundle --install-completion` sets up completion for your shell.

Results go to stdout, everything else to stderr. An error is one line. Exit codes: 0 done, 1 a fault of the program,
2 wrong usage, 3 an invalid bundle or source, 4 refused by trust, verification or proof, 5 a backend failed,
6 `diff` found a difference, 130 interrupted.
"""


def render() -> str:
    """docs/cli.md: each command with its help, arguments, options and examples, in the order of the help."""
    parts = [INTRODUCTION]
    for name, command in COMMANDS.items():
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        usage = " ".join(metavar(argument) for argument in arguments)
        parts.append(f"## {name}\n\n```\ngenai-bundle {name} {usage} [OPTIONS]\n```\n\n{command.help}\n")
        rows = [f"| `{metavar(argument)}` | {cell(argument)} |" for argument in arguments]
        rows += [f"| `{spelling(option)}` | {cell(option)} |" for option in options if option.name != "help"]
        parts.append("\n".join(["| | |", "|---|---|", *rows]) + "\n")
        parts.append("```sh\n" + "\n".join(line.strip() for line in examples(command)) + "\n```\n")
    return "\n".join(parts)


def metavar(argument: Any) -> str:
    return f"{argument.metavar}" if argument.required else f"[{argument.metavar}]"


def spelling(option: Any) -> str:
    """`-o, --output FILE`; a flag stands alone."""
    names = ", ".join(option.opts)
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


def cell(parameter: Any) -> str:
    default = parameter.default
    shown = default not in (None, False, "") and not callable(default) and parameter.param_type_name == "option"
    required = " Required." if parameter.required and parameter.param_type_name == "option" else ""
    text: str = parameter.help.replace("|", "\\|")
    return text + (f" Default: `{default}`." if shown else "") + required


def examples(command: Any) -> list[str]:
    lines = command.epilog.splitlines()
    return [line for line in lines[lines.index("Examples:") + 1 :] if line.strip()]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shell_lines() -> Iterator[str]:
    """Every line of the documents and of the help texts that calls the command."""
    documents = [README, CLI, *sorted((ROOT / "spec").rglob("*.md"))]
    texts = [block for path in documents if path.is_file() for block in blocks(path, "sh")]
    texts += ["\n".join(examples(command)) for command in COMMANDS.values()]
    for line in "\n".join(texts).splitlines():
        _, found, rest = line.partition("genai-bundle ")
        if (found and not line.lstrip().startswith("pip")) or "&& genai-bundle " in line:
            yield rest


def test_every_command_is_documented_as_it_is() -> None:
    assert CLI.read_text(encoding="utf-8") == render(), "run: python tests/test_docs.py"


@pytest.mark.parametrize("line", sorted(set(shell_lines())))
def test_every_shell_line_calls_what_exists(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    if name.startswith("-"):
        assert any(name in parameter.opts for parameter in PROGRAM.params)
        return
    COMMANDS[name].make_context(name, arguments)


def test_readme_has_the_two_commands() -> None:
    text = "\n".join(blocks(README, "sh"))
    assert 'pip install . && genai-bundle run examples/tiny-stories.genai "Once upon a time"' in text
    assert 'pip install -e ".[test]" && pytest' in text


def readme_output() -> str:
    """What README's Python example prints."""
    [code] = blocks(README, "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_readme_example_is_short_and_prints_what_it_says() -> None:
    [code] = blocks(README, "python")
    [output] = blocks(README, "text")
    assert len(code.splitlines()) <= 8
    assert readme_output() == output.strip(), "run: python tests/test_docs.py"


def test_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]


if __name__ == "__main__":
    CLI.write_text(render(), encoding="utf-8")
    [shown] = blocks(README, "text")
    readme = README.read_text(encoding="utf-8")
    README.write_text(readme.replace(f"```text\n{shown}```", f"```text\n{readme_output()}\n```"), encoding="utf-8")
