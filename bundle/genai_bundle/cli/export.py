# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle export``: from a bundle to a folder that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  genai-bundle export tiny-stories.genai --to ort-genai -o stories/
  genai-bundle export tiny-stories.genai --to folder -o stories/
  genai-bundle export tiny-stories.genai --to openvino -o stories/
  genai-bundle export tiny-stories.genai --to folder -o stories/ --variant ort-cpu --force
"""


def register(app: typer.Typer) -> None:
    app.command("export", epilog=EXAMPLES)(export)


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle: a .genai file or its unpacked folder.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="NAME",
            help="'ort-genai' for onnxruntime-genai; 'openvino' for openvino-genai; 'folder': graphs, weights, README.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write.")],
    variant: Annotated[
        str, typer.Option(metavar="NAME", help="'auto': the best for the target; 'portable'; or a variant's name.")
    ] = "auto",
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Fix this adapter of the bundle into the graphs; by default none."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace DIR if an export wrote it, or if it is empty.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: path, target, variant, size, lost.")
    ] = False,
) -> None:
    """Write a bundle as a folder for another program. What that program has no place for is said, never hidden.

    Weights are copied as they are stored, quantised ones too; the folder appears when it is complete. '--to openvino'
    needs the extra `openvino-export`: the engine itself writes the model, and openvino_tokenizers the tokenizer.
    """
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli import console
    from genai_bundle.exports import choose, write

    target = choose(to)
    with open_bundle(file) as bundle:
        plan = target.plan(bundle, variant, adapter)
        with console.progress("checking digests") as report:
            bundle.verify(report)
        with console.progress("writing") as report:
            size = write(bundle, target, plan, output, overwrite=force, progress=report)
    if json:
        facts = {"path": str(output), "target": to, "variant": plan.variant, "size": size, "lost": list(plan.lost)}
        console.print_json(facts)
        return
    typer.echo(f"{output}  {console.human_size(size)}  {target.TITLE}, form '{plan.variant}'")
    for line in plan.lost:
        console.note(f"left out: {line}")
