# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle build``: a bundle from a checkpoint folder or from a written recipe."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from genai_bundle.errors import UsageError

EXAMPLES = """\b
Examples:
  genai-bundle build checkpoints/stories260K -o stories.genai
  genai-bundle build checkpoint/ -o model.genai --name my-model --license Apache-2.0
  genai-bundle build recipe.yaml -o vad.genai
"""

NEEDED_FOR_CHECKPOINTS = ("torch", "transformers", "onnxscript")


def register(app: typer.Typer) -> None:
    app.command("build", epilog=EXAMPLES)(build)


def build(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A checkpoint folder (with config.json) or a recipe (.yaml).")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The .genai file to write.")],
    name: Annotated[str | None, typer.Option(help="The bundle's name; by default the folder's or the recipe's.")] = None,
    license_: Annotated[str | None, typer.Option("--license", metavar="SPDX", help="The weights' licence.")] = None,
    description: Annotated[str | None, typer.Option(help="One line about the bundle.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: id, path, size.")] = False,
) -> None:
    """Build a bundle, prove it against its source, and only then write it.

    A checkpoint is exported with PyTorch (extra `build`); a recipe names graphs that exist already and needs no PyTorch.
    """
    from genai_bundle.cli import console

    details = {key: value for key, value in (("name", name), ("license", license_), ("description", description)) if value}
    identity = _build(source, output, details, force)
    size = output.stat().st_size
    if json:
        console.print_json({"id": identity, "path": str(output), "size": size})
    else:
        typer.echo(f"{output}  {console.human_size(size)}  {identity}")


def _build(source: Path, output: Path, details: dict[str, Any], force: bool) -> str:
    raise NotImplementedError
