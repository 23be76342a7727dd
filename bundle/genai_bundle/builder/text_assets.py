# SPDX-License-Identifier: Apache-2.0
"""The text side of a checkpoint folder: tokenizer, chat template, special tokens and the ids that end a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from genai_bundle.builder.json_file import read_object
from genai_bundle.errors import SourceError

Json = Any

_OLDER = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
"""Files of a tokenizer in the forms that came before tokenizer.json."""

_PIECES = ("source.spm", "target.spm")
"""Two sentencepiece models beside one vocab.json, which numbers their pieces: what Marian's translators have."""

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TextAssets:
    """`tokenizer` is tokenizer.json as found; `special` are the strings that a chat template may name."""

    tokenizer: bytes
    template: str | None
    special: Mapping[str, str]
    eos: tuple[int, ...]
    largest_id: int
    files: tuple[str, ...]


def read_text_assets(path: Path, config: Mapping[str, Json], generation_config: Mapping[str, Json]) -> TextAssets:
    """Read them from the folder `path`; the two configs are its config.json and generation_config.json.

    Raises:
        SourceError: no tokenizer.json, or a file whose content cannot be used.
    """
    raw, tokenizer, files = _read_tokenizer(path)
    settings = _object(path, "tokenizer_config.json", files)
    special = _special(settings, _object(path, "special_tokens_map.json", files))
    template = _template(path, settings, files)
    eos = _eos(tokenizer, special, (generation_config, config, config.get("text_config")))
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest < 0:
        raise SourceError("holds no token", where="tokenizer.json")
    return TextAssets(raw, template, special, eos, largest, tuple(files))


def _read_tokenizer(path: Path) -> tuple[bytes, Tokenizer, list[str]]:
    """The tokenizer as tokenizer.json, and the files that it was read from."""
    file = path / "tokenizer.json"
    files = [file.name] if file.is_file() else [name for name in (*_PIECES, *_OLDER) if (path / name).is_file()]
    raw = file.read_bytes() if file.is_file() else _convert(path, files)
    try:
        return raw, Tokenizer.from_str(raw.decode("utf-8")), files
    except UnicodeDecodeError as error:
        raise SourceError(f"is not UTF-8: {error}", where=file.name) from error
    except Exception as error:  # the library raises a bare Exception for whatever it cannot parse
        raise SourceError(f"is not a tokenizer: {error}", where=file.name) from error


def _convert(path: Path, files: list[str]) -> bytes:
    """What transformers makes of a tokenizer's older form."""
    pieces = [name for name in files if name in _PIECES]
    if pieces:
        raise SourceError(
            f"tokenizer.json is missing; {' and '.join(pieces)} cannot be converted to it", where=str(path),
            hint="Put a tokenizer.json beside them, such as that of the model's conversion for transformers.js",
        )  # fmt: skip
    reason = f"; {', '.join(files)} alone is not enough" if files else ""
    if files and find_spec("transformers") is not None:
        from transformers import AutoTokenizer

        from genai_bundle.builder.exporters.quiet import quiet

        try:
            with quiet():
                made: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
                raw: str = made.backend_tokenizer.to_str()
            return raw.encode()
        except Exception as error:  # a file that is damaged, or a package for it that is not installed
            reason = f"; transformers cannot convert {', '.join(files)}: {str(error).strip().splitlines()[0][:200]}"
    raise SourceError(
        f"tokenizer.json is missing{reason}", where=str(path),
        hint="Save the tokenizer once with AutoTokenizer.from_pretrained(...).save_pretrained(...)",
    )  # fmt: skip


def _object(path: Path, name: str, files: list[str]) -> dict[str, Json]:
    """A JSON object, `{}` when the file is absent. A file that exists is added to `files`."""
    value = read_object(path / name)
    if value is None:
        return {}
    files.append(name)
    return value


def _special(settings: Mapping[str, Json], legacy: Mapping[str, Json]) -> dict[str, str]:
    """Names and strings, as transformers hands them to a chat template. `legacy` is special_tokens_map.json."""
    extra = settings.get("extra_special_tokens")
    sources = [legacy, extra if isinstance(extra, Mapping) else {}, settings]
    found: dict[str, str] = {}
    for source in sources:
        keys = [key for key in source if source is extra or key in _NAMED]
        for key in keys:
            text = source[key].get("content") if isinstance(source[key], Mapping) else source[key]
            if isinstance(text, str) and text:
                found[key] = text
    return dict(sorted(found.items()))


def _template(path: Path, settings: Mapping[str, Json], files: list[str]) -> str | None:
    """The chat template. The three places, strongest first, as transformers reads them."""
    own = path / "chat_template.jinja"
    if own.is_file():
        files.append(own.name)
        try:
            return own.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"is not UTF-8: {error}", where=own.name) from error
    for value, where in (
        (settings.get("chat_template"), "tokenizer_config.json"),
        (_object(path, "chat_template.json", files).get("chat_template"), "chat_template.json"),
    ):
        if value is not None:
            return _default_template(value, where)
    return None


def _default_template(value: Json, where: str) -> str:
    """A template, or the one named `default` of several."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if isinstance(value, Mapping) and isinstance(value.get("default"), str):
        return str(value["default"])
    raise SourceError("chat_template is neither a text nor a list with one named 'default'", where=where)


def _eos(tokenizer: Tokenizer, special: Mapping[str, str], configs: Iterable[Json]) -> tuple[int, ...]:
    """All ids that end a text, each once, in the order in which transformers would ask for them.

    Checkpoints disagree with themselves: a chat model's end of turn often stands in one of these places only, and an id
    that is missing here is a model that never stops.
    """
    found: list[int] = []
    for config in configs:
        value = config.get("eos_token_id") if isinstance(config, Mapping) else None
        found += [token for token in (value if isinstance(value, list) else [value]) if token is not None]
    named = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    if named is not None:
        found.append(named)
    wrong = [token for token in found if type(token) is not int or token < 0]
    if wrong:
        raise SourceError(f"eos_token_id holds {wrong[0]!r}, expected token ids", where="config.json")
    return tuple(dict.fromkeys(found))
