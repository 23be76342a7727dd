# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle unpack``: from the file form to the folder form, which is the same bundle with the same id."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  genai-bundle unpack tiny-stories.genai stories/
  genai-bundle unpack newer.genai stories/ --force    # replace the bundle folder stories/
"""


def register(app: typer.Typer) -> None:
    app.command("unpack", epilog=EXAMPLES)(unpack)


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make; an empty one may exist.")],
    force: Annotated[bool, typer.Option("--force", help="Replace DIR if it is a bundle's folder.")] = False,
) -> None:
    """Write the members of a bundle into a folder, which runs just as the file does."""
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli.console import progress
    from genai_bundle.cli.copying import checked_parts
    from genai_bundle.writer import write_folder

    empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    with open_bundle(file) as bundle:
        manifest, members = checked_parts(bundle)
        with progress("unpacking") as report:
            write_folder(folder, manifest, members, overwrite=force or empty, progress=report)
