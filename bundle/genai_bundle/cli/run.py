# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle run``: one request to a bundle; its text streams to stdout."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genai_bundle.cli.request_options import SEVERAL, with_options
from genai_bundle.errors import UsageError

from .engine_options import Backend, Device, Precision, Threads, Variant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from genai_bundle.manifest import Manifest
    from genai_runner.pipeline import Pipeline
    from genai_runner.results import Result, Stream

EXAMPLES = """\b
Examples:
  genai-bundle run tiny-stories.genai "Once upon a time"
  genai-bundle run tiny-stories.genai "Once" --max-tokens 50 --temperature 0.8 --seed 7
  echo "Once upon a time" | genai-bundle run tiny-stories.genai
  genai-bundle run chat.genai --system "Answer briefly." --message "Who are you?"
  genai-bundle run chat.genai "Who are you?" --adapter pirate
  genai-bundle run tiny-stories.genai "Once" --no-repeat-ngram-size 3 --bad-words "big" --presence-penalty 0.5
  genai-bundle run tiny-stories.genai "Once" --n 3 --max-tokens 20
  genai-bundle run tiny-stories.genai "Once" --temperature 0 --num-beams 4 --n 2 --json
  genai-bundle run chat.genai "Is it red?" --choice yes --choice no
  genai-bundle run stories.genai "Once" --json --stats
  genai-bundle run stories.genai --prompt-file article.txt --speculate lookup --stats
  genai-bundle run stories.genai "Once" --device cuda --device-option device_id=1 --stats
  genai-bundle run stories.genai "Once" --trace trace.json
  genai-bundle run stories.genai --explain
  genai-bundle run vad.genai --input audio=@speech.wav --output speech=speech.npy
"""


def register(app: typer.Typer) -> None:
    app.command("run", epilog=EXAMPLES)(with_options(run, SEVERAL))


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle: a .genai file or its unpacked folder.")],
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; without it, stdin where that is no terminal.")
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Read the prompt from this file ('-': stdin), less one final newline."),
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Chat: what the user says.")] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Chat: the system message before it.")] = None,
    messages: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Chat: a JSON list of messages, each with role and content.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="NAME=VALUE", help="An input by name: text, JSON, or @FILE (.npy .json .wav ...)."
        ),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option("--output", metavar="NAME=FILE", help="Save an output: .npy .json .txt .wav .png."),
    ] = None,
    *,
    options: dict[str, Any],
    json_schema: Annotated[
        str | None, typer.Option(metavar="FILE|JSON", help="Answer with JSON that this schema validates.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Answer with a text that matches the whole pattern.")
    ] = None,
    lark: Annotated[
        Path | None, typer.Option("--grammar", metavar="FILE", help="Answer with a sentence of this Lark grammar.")
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Answer with this text or another --choice.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run with this one of the bundle's adapters.")
    ] = None,
    speculate: Annotated[
        str | None, typer.Option(metavar="NAME", help="Guess tokens, the text stays the same: lookup, draft or auto.")
    ] = None,
    backend: Backend = "onnxruntime",
    explain: Annotated[
        bool, typer.Option("--explain", help="Instead: measure what may run it, and say where each graph would run.")
    ] = False,
    variant: Variant = "auto",
    device: Device = "cpu",
    device_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of the device, such as device_id=1; may be repeated."),
    ] = None,
    allow_cpu_fallback: Annotated[
        bool, typer.Option("--allow-cpu-fallback", help="Run on the CPU what the device does not have.")
    ] = False,
    precision: Precision = None,
    threads: Threads = None,
    no_saved_prefixes: Annotated[
        bool, typer.Option("--no-saved-prefixes", help="Do not use what `prefill` has kept.")
    ] = False,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Use weights in place: less memory, slower steps.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of streaming text.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Report times, speed and peak memory (on stderr).")] = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what ran when, for chrome://tracing or ui.perfetto.dev.")
    ] = None,
) -> None:
    """Run a bundle: give it a prompt (or its other inputs) and print what it generates."""
    import genai_runner
    from genai_bundle.cli import console, figures, form, values
    from genai_bundle.records import ADAPTER

    formed = form.grammar(json_schema, regex, lark, choice)
    targets = [values.split("--output", text) for text in outputs or ()]
    settings: dict[str, Any] = {
        "variant": variant,
        "device": device,
        "device_options": dict(values.split("--device-option", text) for text in device_option or ()),
        "cpu_fallback": allow_cpu_fallback,
        "precision": precision,
        "threads": threads,
        "low_memory": low_memory,
    }
    if explain:
        from genai_bundle.cli.explain import explain as print_figures

        print_figures(file, backend, settings, json=json)
        return
    with ExitStack() as stack:
        if trace is not None:
            settings["trace"] = stack.enter_context(genai_runner.ChromeTrace(trace))
        settings["saved_prefixes"] = not no_saved_prefixes
        with console.phases("loading"):  # the first time, what the engine computes is tried
            pipe = stack.enter_context(genai_runner.load(file, backend=backend, **settings))
        manifest = pipe.manifest
        for name, _ in targets:
            _declared(manifest.outputs, name, "output", manifest.name)
        given = _named_inputs(manifest, inputs or [])
        given.update(_chat(manifest, message, system, messages))
        given.update(_prompt(pipe, prompt, prompt_file, alone=not given))
        named = {ADAPTER: adapter, "speculate": speculate}
        chosen = {name: value for name, value in named.items() if value is not None}
        request = {**options, **chosen, **formed, **given}

        streamed = pipe.text_output
        result = _run(pipe.stream(**request), show=not json and streamed is not None)
        whole = result.finish_reason != "cancelled"
        for name, target in targets if whole else ():
            values.save(name, manifest.outputs[name], result.outputs[name], Path(target))
        facts = figures.of(result) if stats else None
        if json:
            _print_json(result, facts, answers=bool(options.keys() & SEVERAL.keys()))
        else:
            if streamed is None:
                _print_outputs(result, skip={name for name, _ in targets})
            for other in result.sequences[1:]:
                typer.echo(f"---\n{other.text if streamed else other.tokens}")
            if facts is not None:
                figures.show(result, facts)
        if not whole:
            raise KeyboardInterrupt


def _run(stream: Stream, *, show: bool) -> Result:
    """The result of a request; `show` prints the pieces of a text output as they come, and one final newline.

    Ctrl-C ends the request, not the command: what it gave until then is printed, and figures of it if asked for.
    """
    from genai_bundle.cli import console

    with console.interrupts(stream.cancel):
        for piece in stream:
            if show:
                sys.stdout.write(piece)
                sys.stdout.flush()
    if show:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return stream.result


def _declared(known: Mapping[str, Any], name: str, kind: str, bundle: str) -> Any:
    if name not in known:
        raise UsageError(f"'{bundle}' has no {kind} {name!r}", hint=f"It has: {', '.join(known) or 'none'}")
    return known[name]


def _named_inputs(manifest: Manifest, assignments: list[str]) -> dict[str, Any]:
    from genai_bundle.cli import values

    given: dict[str, Any] = {}
    for assignment in assignments:
        name, text = values.split("--input", assignment)
        given[name] = values.parse(name, _declared(manifest.inputs, name, "input", manifest.name), text)
    return given


def _chat(manifest: Manifest, message: str | None, system: str | None, file: Path | None) -> dict[str, Any]:
    """The input of type `messages` from --messages, --system and --message, in that order of the conversation."""
    from genai_bundle.cli import values

    if message is None and system is None and file is None:
        return {}
    names = [name for name, declared in manifest.inputs.items() if declared.type == "messages"]
    if not names:
        raise UsageError(f"'{manifest.name}' takes no chat messages", hint="Give it a prompt instead")
    if message is None and file is None:
        raise UsageError("--system needs a --message or --messages")
    talk: list[Any] = []
    if file is not None:
        talk = values.parse_json(values.read_text(file), str(file))
        if not isinstance(talk, list):
            raise UsageError("not a list of messages", where=str(file))
    if system is not None:
        talk.insert(0, {"role": "system", "content": system})
    if message is not None:
        talk.append({"role": "user", "content": message})
    return {names[0]: talk}


def _prompt(pipe: Pipeline, prompt: str | None, file: Path | None, *, alone: bool) -> dict[str, Any]:
    """The prompt from its argument, a file or stdin. `alone`: no other input was given, so a prompt is expected."""
    from genai_bundle.cli import console, values

    if prompt is not None and file is not None:
        raise UsageError("give the prompt as an argument or with --prompt-file, not both")
    manifest, name = pipe.manifest, pipe.prompt_input
    if prompt is None and file is None:
        if not alone or name is None or manifest.inputs[name].type != "text":
            return {}
        if sys.stdin is None or sys.stdin.isatty():
            console.note("no prompt given: starting from an empty one")
            return {name: ""}
        return {name: values.one_line_less(sys.stdin.read())}
    if name is None:
        raise UsageError(
            f"'{manifest.name}' has no prompt", hint=f"Use --input with: {', '.join(manifest.inputs) or 'nothing'}"
        )
    if prompt is not None:
        return {
            name: values.parse(name, manifest.inputs[name], prompt) if manifest.inputs[name].type != "text" else prompt
        }
    assert file is not None
    return {name: values.one_line_less(sys.stdin.read() if str(file) == "-" else values.read_text(file))}


def _print_json(result: Result, facts: dict[str, Any] | None, *, answers: bool) -> None:
    import dataclasses

    from genai_bundle.cli import console, values

    usage = result.usage
    summary: dict[str, Any] = {
        "text": result.text,
        "tokens": result.tokens,
        "finish_reason": result.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
        "outputs": {name: values.jsonable(value) for name, value in result.outputs.items()},
    }
    if answers:
        summary["sequences"] = [dataclasses.asdict(one) for one in result.sequences]
    console.print_json(summary if facts is None else {**summary, "stats": facts}, indent=None)


def _print_outputs(result: Result, skip: set[str]) -> None:
    from genai_bundle.cli import values

    for name, value in result.outputs.items():
        if name not in skip:
            typer.echo(f"{name}: {values.shown(value)}")
