# SPDX-License-Identifier: Apache-2.0
"""The command ``genai-bundle``: one module for each of its commands. What a command needs is imported when it runs.

Exit codes: 0 done, 1 an error of the program itself, 2 wrong usage, 3 invalid bundle or source, 4 refused by trust,
verification or proof, 5 backend failure, 6 `diff` found a difference, 130 interrupted. An error is one line on stderr;
``--debug`` before the command shows the traceback instead.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from genai_bundle import __version__
from genai_bundle.cli import backends, bench, build, chat, diff, export, inspect, pack, prefill, run, unpack, verify
from genai_bundle.errors import GenaiError

INTERRUPTED = 130


class Program(TyperGroup):
    """Turns every way a command can end into one line on stderr and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        standalone = extra.get("standalone_mode", True)
        extra["standalone_mode"] = False
        _state["debug"] = False
        try:
            code = super().main(*args, **extra)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            if _debug():
                raise
            code = _report(error)
        if standalone:
            sys.exit(code or 0)
        return code


def _report(error: Exception) -> int:
    """Print `error` as one line; the exit code it stands for."""
    if isinstance(error, GenaiError):
        text, code = str(error), error.exit_code
    elif hasattr(error, "format_message"):  # a usage error of the argument parser
        context = getattr(error, "ctx", None)
        hint = f" See '{context.command_path} --help'." if context is not None else ""
        text, code = f"{error.format_message().rstrip('.')}.{hint}", getattr(error, "exit_code", 2)
    elif isinstance(error, typer.Abort):
        text, code = "interrupted", INTERRUPTED
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        text, code = f"{where}{error.strerror}", 2
    else:
        hint = "This is a fault of the program; 'genai-bundle --debug ...' shows where it happened"
        text, code = f"{type(error).__name__}: {error}. {hint}", 1
    typer.echo("error: " + " ".join(text.split()), err=True)
    return code


app = typer.Typer(
    name="genai-bundle",
    cls=Program,
    help="Build, check and run .genai bundles: a whole generative pipeline in one file.",
    epilog='Start with: genai-bundle run examples/tiny-stories.genai "Once upon a time"',
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (run, chat, build, inspect, verify, unpack, pack, export, diff, backends, bench, prefill):
    command.register(app)

_state = {"debug": False}


def _debug() -> bool:
    return _state["debug"]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"genai-bundle {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="On an error, show the traceback instead of one line.")
    ] = False,
    _: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    _state["debug"] = debug
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """The console script: runs the command line of this process and exits with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the same bytes whatever the locale
            stream.reconfigure(encoding="utf-8")
    app(prog_name="genai-bundle")
