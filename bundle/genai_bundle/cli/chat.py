# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle chat``: a conversation with a bundle at the terminal."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genai_bundle.cli.request_options import with_options
from genai_bundle.errors import UsageError

from .engine_options import Backend, Device, Precision, Threads, Variant

if TYPE_CHECKING:
    from genai_bundle.cli.chat_terminal import ReadLine
    from genai_bundle.manifest import Manifest

EXAMPLES = """\b
Examples:
  genai-bundle chat tiny-stories.genai
  genai-bundle chat model.genai --system "Answer briefly." --temperature 0.7 --seed 3
  genai-bundle chat model.genai --backend openvino --precision fast
  genai-bundle chat model.genai --history talk.history
  printf 'What is your name?\\nAnd mine?\\n' | genai-bundle chat tiny-stories.genai
"""


def register(app: typer.Typer) -> None:
    app.command("chat", epilog=EXAMPLES)(with_options(chat))


def chat(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle: a .genai file or its unpacked folder.")],
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    load: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Go on with a conversation that /save wrote.")
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Keep what is typed in this file, for the next time."),
    ] = None,
    *,
    options: dict[str, Any],
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="Talk with this one of the bundle's adapters.")
    ] = None,
    backend: Backend = "onnxruntime",
    variant: Variant = "auto",
    device: Device = "cpu",
    precision: Precision = None,
    threads: Threads = None,
    cache: Annotated[
        int, typer.Option(metavar="MB", min=0, help="Memory for what is computed already when the next turn comes.")
    ] = 256,
    speculate: Annotated[
        str | None, typer.Option(metavar="NAME", help="Guess tokens, the text stays the same: lookup, draft or auto.")
    ] = None,
    stats: Annotated[
        bool | None,
        typer.Option("--stats/--no-stats", help="Figures after each answer; by default at a terminal."),
    ] = None,
) -> None:
    """Talk with a bundle that has a chat template. Type /help there for what else can be done.

    Ctrl-C stops an answer, Ctrl-D leaves. Without a terminal each line of stdin is a turn, and only answers are
    printed, without reasoning. Line editing, history and lines of several rows come with the extra `chat`.
    """
    import genai_runner
    from genai_bundle.cli import chat_talk, console
    from genai_bundle.cli.chat_terminal import Screen
    from genai_bundle.records import ADAPTER

    screen = Screen(interactive=sys.stdin.isatty() and sys.stdout.isatty())
    settings: dict[str, Any] = {"variant": variant, "device": device, "precision": precision, "threads": threads}
    settings["prefix_cache"] = 1_000_000 * cache
    with console.phases("loading"):
        pipe = genai_runner.load(file, backend, **settings)
    with pipe:
        input_ = _messages_input(pipe.manifest, str(file))
        named = {ADAPTER: adapter, "speculate": speculate}
        chosen = options | {name: value for name, value in named.items() if value is not None}
        talk = chat_talk.Talk(pipe, input_, chosen, screen, stats=screen.interactive if stats is None else stats)
        if load is not None:
            talk.load(str(load))
        if system is not None:
            talk.system(system)
        if screen.interactive:
            screen.note(f"{pipe.manifest.name} on {pipe.backend_name}; /help tells what can be done, Ctrl-D leaves")
        chat_talk.run(talk, _reader(screen.interactive, history, list(chat_talk.COMMANDS)), screen)


def _messages_input(manifest: Manifest, where: str) -> str:
    names = [name for name, declared in manifest.inputs.items() if declared.type == "messages"]
    if not names:
        hint = "Give it a prompt instead: genai-bundle run"
        raise UsageError(f"{manifest.name!r} takes no chat messages: it has no chat template", where=where, hint=hint)
    return names[0]


def _reader(interactive: bool, history: Path | None, commands: list[str]) -> Any:
    """A function that gives the next turn."""
    from genai_bundle.cli import chat_terminal as terminal
    from genai_bundle.cli import console

    read: ReadLine | None = terminal.script
    if interactive:
        read = terminal.editor([f"/{name}" for name in commands], history)
        if read is None:
            console.note("hint: pip install 'genai-bundle[chat]' for history and better editing of lines")
            read = terminal.plain
    assert read is not None
    return partial(terminal.joined_lines, read)
