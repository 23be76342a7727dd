# SPDX-License-Identifier: Apache-2.0
"""The text side of a foreign folder: a tokenizer with its template, or ids in and ids out where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from genai_bundle.builder.reply import reply_of
from genai_bundle.builder.text_assets import TextAssets, read_text_assets
from genai_bundle.errors import SourceError
from genai_bundle.importers.foreign import Section
from genai_bundle.importers.plain import PROMPTS
from genai_bundle.writer import Source

OTHER_VOCABULARIES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "source.spm")


@dataclass(frozen=True)
class Text:
    """`assets` is None for a model without a tokenizer; its prompts are ids. `eos`: the ids that end a text."""

    assets: TextAssets | None
    eos: tuple[int, ...]

    @property
    def chat(self) -> bool:
        return self.assets is not None and self.assets.template is not None

    def section(self) -> dict[str, Any]:
        """The manifest's `text`, empty without a tokenizer."""
        if self.assets is None:
            return {}
        template = {"template": "chat_template.jinja"} if self.chat else {}
        named = {"tokenizer": "tokenizer.json", **template, "eos": list(self.eos), "special": dict(self.assets.special)}
        named |= reply_of(self.assets.template)
        return {"text": named}

    def members(self) -> dict[str, Source]:
        if self.assets is None:
            return {}
        template = {"chat_template.jinja": self.assets.template.encode()} if self.assets.template is not None else {}
        return {"tokenizer.json": self.assets.tokenizer, **template}

    def inputs(self) -> dict[str, Any]:
        """The manifest's inputs that stand for the prompt."""
        if self.assets is None:
            return {"ids": {"type": "i64", "dims": [1, "N"], "description": "The ids to continue."}}
        prompt: dict[str, Any] = {"type": "text", "description": "The text to continue."}
        if not self.chat:
            return {"prompt": prompt}
        messages = {"type": "messages", "optional": True, "description": "A conversation, instead of the prompt."}
        return {"prompt": prompt | {"optional": True}, "messages": messages}

    def outputs(self) -> dict[str, Any]:
        tokens: dict[str, Any] = {"tokens": {"type": "i64", "dims": [1, "T*"]}}
        return tokens if self.assets is None else tokens | {"text": {"type": "text", "dims": ["T*"]}}

    def begin(self) -> list[dict[str, Any]]:
        """The steps from the inputs to `ids`."""
        encode = {"run": "text.encode@1", "in": {"text": "prompt"}, "out": {"ids": "ids"}}
        render = {"run": "text.chat@1", "in": {"messages": "messages"}, "out": {"ids": "ids"}}
        if self.assets is None:
            return []
        return [{"if": "messages", "then": [render], "else": [encode], "out": ["ids"]} if self.chat else encode]

    def emit(self) -> dict[str, str]:
        return {"tokens": "token"} if self.assets is None else {"tokens": "token", "text": "text.decode@1"}

    def prompts(self, vocabulary: int, longest: int) -> list[tuple[dict[str, Any], list[int]]]:
        """Inputs of the bundle, and the ids that they stand for, none longer than `longest`."""
        if self.assets is None:
            found = [list(range(1, count + 1)) for count in (1, 2, 5)]
            named: list[tuple[dict[str, Any], list[int]]]
            named = [({"ids": [ids]}, ids) for ids in found if max(ids) < vocabulary]
        else:
            tokenizer = Tokenizer.from_str(self.assets.tokenizer.decode())
            tokenizer.no_truncation()
            tokenizer.no_padding()
            named = [({"prompt": text}, list(tokenizer.encode(text).ids)) for text in PROMPTS]
        return [(inputs, ids) for inputs, ids in named if 0 < len(ids) <= longest]


def read_text(path: Path, eos: Sequence[int] | None, configs: Sequence[Mapping[str, Any]] = ()) -> Text:
    """The text side of a folder.

    eos: the ids that the layout itself states; None where it leaves them to config.json and generation_config.json
    (`configs`, in this order) and the tokenizer. Raises SourceError: a vocabulary that cannot be used.
    """
    if not (path / "tokenizer.json").is_file() and not any((path / name).exists() for name in OTHER_VOCABULARIES):
        return Text(None, tuple(eos) if eos is not None else _stated(configs))
    config, generation = (*configs, {}, {})[:2]
    assets = read_text_assets(path, config, generation)
    return Text(assets, tuple(eos) if eos is not None else assets.eos)


def _stated(configs: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """The ending ids that configurations state."""
    found: list[int] = []
    for config in configs:
        for part in (config, config.get("text_config")):
            if isinstance(part, Mapping):
                found += Section(part, "config.json").ids("eos_token_id")
    return tuple(dict.fromkeys(found))


def check_vocabulary(text: Text, rows: int, where: str) -> None:
    """Every id that the tokenizer can give has a row in the embedding. Raises SourceError."""
    if text.assets is not None and text.assets.largest_id >= rows:
        raise SourceError(
            f"holds the token id {text.assets.largest_id}, but the model knows {rows} ({where})",
            where="tokenizer.json", hint="The tokenizer is another model's",
        )  # fmt: skip


def digests(path: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 in hex of files in the folder `path`, by their names in it."""
    found = {}
    for file in sorted(set(files)):
        with file.open("rb") as opened:
            found[file.relative_to(path).as_posix()] = file_digest(opened, "sha256").hexdigest()
    return found
