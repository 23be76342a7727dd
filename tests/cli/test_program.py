# SPDX-License-Identifier: Apache-2.0
"""The command as a whole: help, version, completion, errors and exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import genai_bundle
from cli.samples import command
from genai_bundle import cli
from genai_bundle.errors import BackendError, GenaiError, ManifestError, ProofError, SourceError, TrustError, UsageError

COMMANDS = ["run", "build", "inspect", "verify", "unpack", "pack"]


def test_version() -> None:
    assert command("--version").out == f"genai-bundle {genai_bundle.__version__}\n"


def test_help_lists_every_command() -> None:
    done = command("--help")
    assert done.code == 0
    assert all(f"\n  {name} " in done.out for name in COMMANDS)
    assert command().code == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str) -> None:
    done = command(name, "--help")
    assert done.code == 0
    assert done.out == command(name, "-h").out
    assert "Examples:" in done.out
    assert f"\n    genai-bundle {name} " in done.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered(shell: str) -> None:
    environment = {"_GENAI_BUNDLE_COMPLETE": f"source_{shell}"}
    result = CliRunner().invoke(cli.app, [], env=environment, prog_name="genai-bundle")
    assert "genai-bundle" in result.stdout
    assert "_GENAI_BUNDLE_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [["mend"], ["run"], ["run", "x.genai", "--no-such-option"], ["run", "x.genai", "--top-k", "few"], ["pack", "x"]],
)
def test_wrong_usage_is_one_line_with_a_way_to_help(arguments: list[str]) -> None:
    done = command(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("error: ")
    assert "--help'." in done.err


def raising(error: BaseException, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command that raises `error`."""
    app = typer.Typer(cls=cli.Program)

    @app.command()
    def fail() -> None:
        raise error

    app.callback()(cli.program)
    result = CliRunner().invoke(app, [*arguments, "fail"])
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GenaiError("broken"), 1),
        (UsageError("broken"), 2),
        (ManifestError("broken", rule="M1", where="name"), 3),
        (SourceError("broken"), 3),
        (TrustError("broken"), 4),
        (ProofError("broken\nin two lines"), 4),
        (BackendError("broken", hint="Mend it"), 5),
        (FileNotFoundError(2, "No such file or directory", "x"), 2),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("broken"), 1),
    ],
)
def test_exit_codes_differ_by_kind_and_errors_are_one_line(error: BaseException, code: int) -> None:
    found, text = raising(error)
    assert found == code
    assert text.count("\n") == (0 if code == 130 else 1)
    if isinstance(error, GenaiError):
        assert text == f"error: {error}\n"


def test_an_unknown_exception_says_how_to_see_more() -> None:
    assert "--debug" in raising(ZeroDivisionError("broken"))[1]


def test_debug_shows_the_traceback() -> None:
    app = typer.Typer(cls=cli.Program)
    app.callback()(cli.program)

    @app.command()
    def fail() -> None:
        raise UsageError("broken")

    result = CliRunner().invoke(app, ["--debug", "fail"])
    assert isinstance(result.exception, UsageError)


def test_help_imports_nothing_heavy() -> None:
    heavy = ("numpy", "onnx", "onnxruntime", "genai_runner", "tokenizers", "jinja2", "rich", "torch", "yaml")
    code = "import sys, genai_bundle.cli; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
