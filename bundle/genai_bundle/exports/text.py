# SPDX-License-Identifier: Apache-2.0
"""The text side of a bundle as the files that Hugging Face's libraries, and those that follow them, look for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from genai_bundle.bundle import Bundle
from genai_bundle.exports import as_json
from genai_bundle.manifest import Manifest

OPTIONS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Options of a request that generation_config.json names in the same way, and that a greedy request has no use for."""

ALWAYS = {
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "min_tokens": "min_new_tokens",
}
"""Options that a greedy request has too, by the names that generation_config.json gives them."""


def text_files(bundle: Bundle, tokenizer_class: str = "PreTrainedTokenizerFast") -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja; nothing for a bundle that takes ids."""
    text = bundle.manifest.text
    if text is None:
        return {}
    files = {"tokenizer.json": bundle.read(text.tokenizer)}
    named = {name: token for name, token in text.special.items() if name.endswith("_token")}
    extra = {name: token for name, token in text.special.items() if name not in named}
    settings: dict[str, Any] = {
        "tokenizer_class": tokenizer_class,
        **named,
        **({"extra_special_tokens": extra} if extra else {}),
        "clean_up_tokenization_spaces": False,
    }
    if text.template is not None:
        template = bundle.read(text.template)
        files["chat_template.jinja"] = template
        settings["chat_template"] = template.decode()
    return files | {"tokenizer_config.json": as_json(settings)}


def special_id(bundle: Bundle, name: str) -> int | None:
    """The id of the special token that the template calls `name`, such as `pad_token`."""
    text = bundle.manifest.text
    if text is None or name not in text.special:
        return None
    found: int | None = Tokenizer.from_buffer(bundle.read(text.tokenizer)).token_to_id(text.special[name])
    return found


def marked(bundle: Bundle) -> bool:
    """Whether the tokenizer puts special tokens around a text."""
    text = bundle.manifest.text
    return text is not None and bool(Tokenizer.from_buffer(bundle.read(text.tokenizer)).encode("").ids)


def sampling(manifest: Manifest) -> Mapping[str, Any]:
    """The bundle's defaults as generation_config.json says them. Without a temperature a request is greedy."""
    defaults = manifest.generation
    sampled = defaults.get("temperature", 0) > 0
    found: dict[str, Any] = {"do_sample": sampled}
    found |= {name: defaults[key] for key, name in ALWAYS.items() if key in defaults}
    return found | ({key: defaults[key] for key in OPTIONS if key in defaults} if sampled else {})


def generation_config(bundle: Bundle) -> dict[str, Any]:
    """The content of generation_config.json."""
    manifest = bundle.manifest
    ids = {f"{name}_id": special_id(bundle, name) for name in ("bos_token", "pad_token")}
    eos = list(manifest.text.eos) if manifest.text else []
    limit = {"max_new_tokens": manifest.generation["max_tokens"]} if "max_tokens" in manifest.generation else {}
    return {
        **{name: number for name, number in ids.items() if number is not None},
        **({"eos_token_id": eos} if eos else {}),
        **sampling(manifest),
        **limit,
    }
