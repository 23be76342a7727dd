# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle pack``: from the folder form back to one file, byte for byte the one that was unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genai_bundle.errors import UsageError

EXAMPLES = """\b
Examples:
  genai-bundle unpack tiny-stories.genai stories/
  genai-bundle pack stories/ -o again.genai           # the same bytes as tiny-stories.genai
"""


def register(app: typer.Typer) -> None:
    app.command("pack", epilog=EXAMPLES)(pack)


def pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The unpacked bundle.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The .genai file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write an unpacked bundle as one file and print its id. The folder's members must be those its manifest lists."""
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli.console import progress
    from genai_bundle.cli.copying import checked_parts
    from genai_bundle.writer import write_bundle

    if folder.resolve() in output.resolve().parents:
        raise UsageError("lies inside the folder that it is packed from", where=str(output), hint="Write it elsewhere")
    with open_bundle(folder) as bundle:
        manifest, members = checked_parts(bundle)
        with progress("packing") as report:
            typer.echo(write_bundle(output, manifest, members, overwrite=force, progress=report))
