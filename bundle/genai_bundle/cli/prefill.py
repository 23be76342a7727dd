# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle prefill``: compute what a fixed beginning of prompts leaves in the caches, once for all requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genai_bundle.errors import UsageError

from . import prefill_inside
from .engine_options import Backend, Device, Precision, Threads, Variant

if TYPE_CHECKING:
    from genai_runner.saved_prefixes import Prefix

EXAMPLES = """\b
Examples:
  genai-bundle prefill chat.genai --system rules.txt
  genai-bundle prefill chat.genai --system rules.txt --tools tools.json --backend openvino
  genai-bundle prefill chat.genai --system-text "Answer briefly." --adapter pirate
  genai-bundle prefill tiny-stories.genai --prompt beginning.txt
  genai-bundle prefill chat.genai --system rules.txt -o with-rules.genai
  genai-bundle prefill --list
  genai-bundle prefill chat.genai --list --json
  genai-bundle prefill --remove 1f0c9a2b7d3e
  genai-bundle prefill chat.genai --clear
  genai-bundle prefill with-rules.genai --remove 1f0c9a2b7d3e -o chat.genai --force
"""


def register(app: typer.Typer) -> None:
    app.command("prefill", epilog=EXAMPLES)(prefill)


def prefill(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The bundle: a .genai file or its unpacked folder.")
    ] = None,
    system: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Chat: a file with the system message, less one final newline.")
    ] = None,
    system_text: Annotated[str | None, typer.Option(metavar="TEXT", help="Chat: the system message itself.")] = None,
    tools: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Chat: a JSON list of the functions that go with it.")
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the beginning of prompts, less one final newline.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="For requests with this one of the bundle's adapters.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("-o", "--into", metavar="FILE", help="Write FILE: the bundle with the prefix, or with one less."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With -o: replace FILE if it exists.")] = False,
    backend: Backend = "onnxruntime",
    variant: Variant = "auto",
    device: Device = "cpu",
    precision: Precision = None,
    threads: Threads = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what is kept, for FILE or for all bundles.")] = False,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Delete what has this id in the list; may be repeated.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete what is kept, for FILE or for all bundles.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compute a fixed beginning of prompts once: a system message, tools, or any text.

    What it leaves in the model's caches is kept in the user's cache folder, or with -o in a new copy of the bundle.
    Every later request that begins so goes on from there, if it has the same engine, variant, device and precision on
    the same kind of processor. Answers stay the same; `run --stats` tells how many tokens were not computed again.
    """
    texts = [one is not None for one in (system, system_text, prompt)]
    if sum([*texts, list_, bool(remove), clear]) != 1:
        wanted = "--system, --system-text, --prompt, --list, --remove or --clear"
        raise UsageError("there is not one thing to do", hint=f"Give one of {wanted}")
    if list_ or remove or clear:
        if into is None:
            _kept(file, list_=list_, remove=remove or [], json=json)
        elif list_ or file is None:
            raise UsageError("-o goes with FILE and a prefix to compute, --remove or --clear")
        else:
            prefill_inside.remove(file, into, None if clear else remove or [], overwrite=force, json=json)
        return
    if file is None:
        raise UsageError("there is no bundle to compute it with", hint="Give a .genai file")
    if force and into is None:
        raise UsageError("--force goes with -o")
    if into is not None:
        prefill_inside.check_target(file, into, force)
    if tools is not None and prompt is not None:
        raise UsageError("--tools go with a system message")
    import genai_runner
    from genai_bundle.cli import console
    from genai_runner.prefill import compute, keep, key_of

    how: dict[str, Any] = {"variant": variant, "device": device, "precision": precision, "threads": threads}
    with console.phases("loading"):
        pipe = genai_runner.load(file, backend, **how)
    with pipe, console.phases("computing"):
        computed = compute(pipe, _of(system, system_text, prompt, tools), adapter)
        if into is None:
            made = keep(pipe, computed)
    if into is not None:
        made = prefill_inside.write(file, into, computed, key_of(pipe).key, overwrite=force)
    if json:
        console.print_json(facts(made))
    else:
        typer.echo(f"{made.id}: {len(made.ids)} tokens, {console.human_size(made.nbytes)}: {made.text}")


def _of(system: Path | None, system_text: str | None, prompt: Path | None, tools: Path | None) -> dict[str, Any]:
    """What is asked for as it stands in the files."""
    from genai_bundle.cli import values

    if prompt is not None:
        return {"prompt": values.one_line_less(values.read_text(prompt))}
    of: dict[str, Any] = {}
    if tools is not None:
        of["tools"] = values.parse_json(values.read_text(tools), str(tools))
        if not isinstance(of["tools"], list) or not all(isinstance(one, dict) for one in of["tools"]):
            raise UsageError("not a list of functions", where=str(tools))
    of["system"] = system_text if system is None else values.one_line_less(values.read_text(system))
    return of


def _kept(file: Path | None, *, list_: bool, remove: list[str], json: bool) -> None:
    """Show or delete what is kept."""
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli import console
    from genai_runner import saved_prefixes
    from genai_runner.packed_prefixes import packed_prefixes

    bundle: str | None = None
    inside: list[Prefix] = []
    if file is not None:
        with open_bundle(file) as opened:
            bundle, inside = opened.base_id, packed_prefixes(opened)
    found = saved_prefixes.every(bundle)
    if list_:
        if json:
            console.print_json({"prefixes": [facts(one) for one in (*inside, *found)]})
        else:
            _print([*inside, *found])
        return
    unknown = sorted(set(remove) - {one.id for one in found})
    if unknown and unknown[0] in {one.id for one in inside}:
        hint = "Give -o FILE, the bundle without it"
        raise UsageError(f"{unknown[0]!r} lies in the bundle itself", hint=hint)
    if unknown:
        raise UsageError(f"nothing is kept under the id {unknown[0]!r}", hint="See genai-bundle prefill --list")
    gone = [one for one in found if not remove or one.id in remove]
    lines = [facts(one) for one in gone]
    for one in gone:
        saved_prefixes.remove(one)
    if bundle is None and not remove:
        saved_prefixes.clear()
    if json:
        console.print_json({"removed": lines})
    else:
        typer.echo(f"removed {len(gone)}")


def _print(found: list[Prefix]) -> None:
    from rich.table import Table

    from genai_bundle.cli import console

    if not found:
        console.note("nothing is kept")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True, min_width=12)
    inside = any(one.inside is not None for one in found)
    for title in ("bundle", *(["kept"] if inside else []), "engine", "adapter"):
        table.add_column(title, no_wrap=True)
    for title in ("tokens", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("begins with", no_wrap=True)
    for one in found:
        engine = str(one.key.get("backend"))
        sizes = str(len(one.ids)), console.human_size(one.nbytes)
        place = ["cache" if one.inside is None else "inside"] if inside else []
        table.add_row(one.id, one.name, *place, engine, one.adapter or "", *sizes, one.text)
    console.stdout().print(table)


def facts(one: Prefix) -> dict[str, Any]:
    return {
        "id": one.id,
        "bundle": one.name,
        "tokens": len(one.ids),
        "bytes": one.nbytes,
        "adapter": one.adapter,
        "text": one.text,
        "inside": one.inside is not None,
        "computed": one.key,
        "file": str(one.file),
    }
