# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle build``: a bundle from a checkpoint, from a folder of graphs or from a written recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from genai_bundle.errors import UsageError

EXAMPLES = """\b
Examples:
  genai-bundle build checkpoints/stories260K -o stories.genai
  genai-bundle build checkpoint/ -o model.genai --name my-model --license Apache-2.0
  genai-bundle build checkpoint/ -o small.genai --quantize int4
  genai-bundle build checkpoint/ -o chat.genai --adapter pirate=lora/pirate --adapter formal=lora/formal
  genai-bundle build qwen3-8b/ -o qwen.genai --draft qwen3-0.6b/
  genai-bundle build checkpoint/ -o small.genai --quantize int4 --perplexity wiki.txt
  genai-bundle build checkpoint/ -o small.genai --quantize int4 --quantize-override "lm_head*=int8"
  genai-bundle build HuggingFaceTB/SmolLM3-3B -o smollm.genai
  genai-bundle build llama-3.2-1b-Q8_0.gguf -o llama.genai
  genai-bundle build onnxruntime-genai-folder/ -o model.genai
  genai-bundle build optimum-folder/ -o model.genai --dtype-suffix q4
  genai-bundle build recipe.yaml -o vad.genai
  genai-bundle build model.onnx --draft-recipe -o recipe.yaml
"""


def register(app: typer.Typer) -> None:
    app.command("build", epilog=EXAMPLES)(build)


def build(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A checkpoint folder or org/name in the hub's cache, a folder of ONNX graphs, a GGUF file, a recipe.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The .genai file to write.")],
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The bundle's name; by default the folder's or the recipe's.")
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", metavar="SPDX", help="The weights' licence.")] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="One line about the bundle.")] = None,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="FORM", help="Store weights as int4, int8, fp16 or bf16; by default as they are."),
    ] = None,
    block_size: Annotated[
        int, typer.Option(metavar="N", help="Elements that share a scale: 16, 32, 64, 128 or 256.")
    ] = 32,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Quantise around zero, without zero points.")] = False,
    quantize_override: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=FORM", help="Another form for weights with such names; may be repeated."),
    ] = None,
    quantize_exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave weights with such names as they are; may be repeated."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Pack a LoRA adapter of PEFT, to run by this name; may be repeated."),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="SRC",
            help="What guesses tokens: a smaller model with the same tokenizer; or `head`, the checkpoint's own for "
            "multi-token prediction, which is packed by default where it can be proved; or `none`.",
        ),
    ] = None,
    perplexity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Report what --quantize does to the perplexity of this text.")
    ] = None,
    exporter: Annotated[
        str | None, typer.Option(metavar="NAME", help="The only exporter to try; by default all, in their order.")
    ] = None,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Import although keys of a configuration are not understood.")
    ] = False,
    dtype_suffix: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Of a folder's graphs in several forms, such as q4, the one to take."),
    ] = None,
    draft_recipe: Annotated[
        bool, typer.Option("--draft-recipe", help="Of an .onnx file: write a recipe to FILE, to be filled in.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: id, path, size, report.")] = False,
) -> None:
    """Build a bundle, prove it against its source, and only then write it.

    A checkpoint is exported with PyTorch (extra `build`), and so is what a GGUF file holds (extra `gguf`). Folders of
    ONNX graphs (ONNX Runtime GenAI, Optimum, transformers.js, sentence-transformers) and recipes need none.
    """
    if draft_recipe:
        from genai_bundle.importers.onnx_file import draft_recipe as write_draft

        write_draft(source, output, overwrite=force)
        typer.echo(f"{output}  a draft to be filled in, which builds as it is")
        return
    from genai_bundle.builder.build import build as run_build
    from genai_bundle.builder.options import BuildOptions
    from genai_bundle.builder.report import Report, summary
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli import console
    from genai_bundle.cli.report import build_rows, table

    named = {"name": name, "license": license_, "description": description}
    options = BuildOptions(
        details={key: value for key, value in named.items() if value is not None},
        overwrite=force,
        exporter=exporter,
        quantize=quantize,
        block_size=block_size,
        symmetric=symmetric,
        overrides=[_override(text) for text in quantize_override or ()],
        exclude=quantize_exclude or (),
        adapters=_adapters(adapter or ()),
        perplexity=perplexity,
        allow_lossy=allow_lossy,
        dtype_suffix=dtype_suffix,
        draft=Path(draft) if draft not in (None, "head", "none") else None,
        heads={"head": True, "none": False}.get(draft or ""),
    )
    with console.phases(f"building {output.name}") as tell:
        report = Report(tell)
        identity = run_build(source, output, options, report)
    size = output.stat().st_size
    with open_bundle(output, check=False) as bundle:  # a build has checked and proved it
        facts = summary(report, bundle)
    if json:
        console.print_json({"id": identity, "path": str(output), "size": size, "report": facts})
    else:
        typer.echo(f"{output}  {console.human_size(size)}  {identity}")
        console.stdout().print(table(build_rows(facts)))


def _adapters(assignments: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in assignments:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder or name in found:
            problem = "names an adapter twice" if name in found else "is not NAME=FOLDER"
            raise UsageError(f"{text!r} {problem}", where="--adapter", hint="Such as --adapter pirate=adapters/pirate")
        found[name] = Path(folder)
    return found


def _override(text: str) -> tuple[str, str]:
    """PATTERN=FORM; a weight's name may hold anything but `=`."""
    pattern, equals, form = text.rpartition("=")
    if not equals or not pattern:
        hint = "Such as --quantize-override '*.down_proj.weight=int8'"
        raise UsageError(f"{text!r} is not PATTERN=FORM", where="--quantize-override", hint=hint)
    return pattern, form
