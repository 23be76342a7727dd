# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle build``: a bundle from a checkpoint folder or from a written recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  genai-bundle build checkpoints/stories260K -o stories.genai
  genai-bundle build checkpoint/ -o model.genai --name my-model --license Apache-2.0
  genai-bundle build recipe.yaml -o vad.genai
"""


def register(app: typer.Typer) -> None:
    app.command("build", epilog=EXAMPLES)(build)


def build(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A checkpoint folder (with config.json) or a recipe (.yaml).")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The .genai file to write.")],
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The bundle's name; by default the folder's or the recipe's.")
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", metavar="SPDX", help="The weights' licence.")] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="One line about the bundle.")] = None,
    exporter: Annotated[
        str | None, typer.Option(metavar="NAME", help="The only exporter to try; by default all, in their order.")
    ] = None,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Import although keys of a configuration are not understood.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: id, path, size.")] = False,
) -> None:
    """Build a bundle, prove it against its source, and only then write it.

    A checkpoint is exported with PyTorch (extra `build`); a recipe names graphs that exist and needs none.
    """
    from genai_bundle.builder.build import build as run_build
    from genai_bundle.builder.options import BuildOptions
    from genai_bundle.cli import console

    named = {"name": name, "license": license_, "description": description}
    options = BuildOptions(
        details={key: value for key, value in named.items() if value is not None},
        overwrite=force,
        exporter=exporter,
        allow_lossy=allow_lossy,
    )
    with console.phases(f"building {output.name}") as tell:
        identity = run_build(source, output, options, tell)
    size = output.stat().st_size
    if json:
        console.print_json({"id": identity, "path": str(output), "size": size})
    else:
        typer.echo(f"{output}  {console.human_size(size)}  {identity}")
