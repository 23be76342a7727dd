# SPDX-License-Identifier: Apache-2.0
"""A GGUF file: a whole language model, tokenizer included, as llama.cpp reads it.

The file is turned into what a checkpoint folder would say (config, tensors by transformers' names, tokenizer), and the
ordinary build goes on from there. The yardstick of the proof is transformers' own reading of the file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from genai_bundle.builder.checkpoint import Checkpoint, check_vocabulary, generation_defaults
from genai_bundle.builder.json_file import read_object
from genai_bundle.builder.options import BuildOptions
from genai_bundle.builder.report import Report
from genai_bundle.builder.text_assets import read_text_assets
from genai_bundle.errors import SourceError
from genai_bundle.importers.gguf.file import GgufFile, is_gguf, read_gguf

LAYOUT = "a GGUF file"


def recognises(path: Path) -> bool:
    return is_gguf(path)


def build(source: Path, target: Path, options: BuildOptions, tell: Callable[[str], None]) -> str:
    """See `builder.build.build`."""
    from genai_bundle.builder.from_checkpoint import build_from, check_installed

    tell("reading the file's tables")
    file = read_gguf(source)
    check_installed(source, "accelerate")
    with TemporaryDirectory() as folder:
        checkpoint = as_checkpoint(file, Path(folder), lossy=options.allow_lossy, tell=tell)
        details = _details(file) | dict(options.details)
        return build_from(checkpoint, target, replace(options, details=details), tell)


def as_checkpoint(file: GgufFile, folder: Path, *, lossy: bool, tell: Callable[[str], None]) -> Checkpoint:
    """The file as a checkpoint whose small files are written into `folder`, beside a link to the GGUF file itself.

    Raises:
        SourceError: see `config`, `tensors` and `text`.
    """
    from genai_bundle.importers.gguf.blocks import FORMS
    from genai_bundle.importers.gguf.config import read_config
    from genai_bundle.importers.gguf.tensors import STORED, map_tensors
    from genai_bundle.importers.gguf.text import strange_keys, write_text_files

    if file.metadata.get("general.type", "model") != "model":
        raise SourceError(f"is a file of type {file.metadata['general.type']!r}", where=file.path.name)
    config, dropped = read_config(file, lossy=lossy)
    strange = strange_keys(file)
    if strange and not lossy:
        raise SourceError(
            f"has keys that are not understood: {', '.join(strange)}", where=file.path.name,
            hint="Give --allow-lossy to drop them",
        )  # fmt: skip
    if dropped or strange:
        Report.of(tell).note(f"dropped: {', '.join([*dropped, *strange])}")
    (folder / file.path.name).symlink_to(file.path.resolve())
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_text_files(file, folder)
    generation = read_object(folder / "generation_config.json") or {}
    text = read_text_assets(folder, config, generation)
    check_vocabulary(text, config)
    tensors, kept = map_tensors(file, config)
    widened = Counter(
        tensor.kind
        for tensor in file.tensors.values()
        if tensor.kind not in STORED and not (tensor.kind in FORMS and len(tensor.shape) == 2)
    )
    if widened:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(widened.items()))
        Report.of(tell).note(f"decoded to float32: {counts}; --quantize makes them small again")
    return Checkpoint(
        path=folder,
        config=config,
        context=config["max_position_embeddings"],
        generation=generation_defaults(generation),
        text=text,
        tensors=tensors,
        members=(file.path.name,),
        gguf=file.path.name,
        kept=kept,
    )


def _details(file: GgufFile) -> dict[str, str]:
    """The bundle's name and licence where the user gives none."""
    license_ = str(file.metadata.get("general.license", ""))
    return {"name": file.path.stem} | ({"license": license_} if re.fullmatch(r"[A-Za-z0-9.+-]+", license_) else {})
