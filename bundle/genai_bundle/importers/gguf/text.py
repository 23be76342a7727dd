# SPDX-License-Identifier: Apache-2.0
"""tokenizer.json, tokenizer_config.json and generation_config.json from what a GGUF file embeds.

transformers rebuilds the tokenizer from the vocabulary. Three things are put right afterwards, each as llama.cpp, for
which the file is written, does them: the space before a sentencepiece text, vocabularies whose whole words go before
merges, and splits that transformers does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genai_bundle.errors import SourceError
from genai_bundle.importers.gguf.file import GgufFile

Json = dict[str, Any]

MODELS = ("llama", "gpt2")
"""tokenizer.ggml.model: sentencepiece BPE with byte fallback, byte-level BPE."""

PLAIN = ("gpt-2", "gpt2", "mpt", "olmo", "phi-2")
"""Splits (tokenizer.ggml.pre) that are GPT-2's."""

SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
"""GPT-2's, after each digit was set apart."""

WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
"""Vocabularies in which a word that is a token stays whole, whatever the merges make of it."""

ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>")
"""Control tokens that end an answer for llama.cpp even where the file names no id for it."""

CONTROL = 3

ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "mask", "cls", "prefix", "suffix", "middle",
         "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")  # fmt: skip
"""What a token may be for, as llama.cpp spells it."""

KEYS = {
    "model", "pre", "tokens", "scores", "token_type", "merges", "add_bos_token", "add_eos_token", "add_space_prefix",
    *(f"{role}_token_id" for role in ROLES),
}  # fmt: skip
"""Understood, or without effect on an encoding, below `tokenizer.ggml.`."""

SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
            "penalty_repeat": "repetition_penalty"}  # fmt: skip
"""general.sampling.* with transformers' names."""


def strange_keys(file: GgufFile) -> list[str]:
    """Keys about text that are not understood."""
    found = []
    for key in file.metadata:
        section, _, rest = key.partition(".")
        if section == "tokenizer":
            known = rest.removeprefix("ggml.") in KEYS if rest.startswith("ggml.") else rest == "chat_template"
        elif key.startswith("general.sampling."):
            known = key.removeprefix("general.sampling.") in SAMPLING
        else:
            continue
        if not known:
            found.append(key)
    return sorted(found)


def write_text_files(file: GgufFile, folder: Path) -> None:
    """Write the three files into `folder`, which holds the GGUF file too, as a checkpoint would have them.

    Raises:
        SourceError: a kind of tokenizer, or of split, that cannot be rebuilt.
    """
    model, split = file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre", "default")
    if model not in MODELS:
        raise SourceError(
            f"tokenizer.ggml.model is {model!r}, expected one of {', '.join(MODELS)}", where=file.path.name,
            hint="Build from the original checkpoint",
        )  # fmt: skip
    document = _rebuild(file)
    if model == "llama":
        _sentencepiece(document, file.metadata)
    else:
        _byte_level(document, split, file.path.name)
    _frame(document, file.metadata, bos=model == "llama" or split in WHOLE_WORDS)
    write = {
        "tokenizer.json": document,
        "tokenizer_config.json": _settings(file),
        "generation_config.json": _generation(file),
    }
    for name, value in write.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _rebuild(file: GgufFile) -> Json:
    """tokenizer.json's content as transformers makes it."""
    from transformers.integrations.gguf import convert_gguf_tokenizer

    names = {
        "model": "tokenizer_type", "pre": "pre_tokenizer_type", "tokens": "tokens", "scores": "scores",
        "token_type": "token_type", "merges": "merges", "add_space_prefix": "add_prefix_space",
    }  # fmt: skip
    given = {name: file.metadata.get(f"tokenizer.ggml.{key}") for key, name in names.items()}
    try:
        tokenizer, _ = convert_gguf_tokenizer(
            file.architecture, {name: value for name, value in given.items() if value is not None}
        )
        document: Json = json.loads(tokenizer.to_str())
    except Exception as error:  # whatever a converter raises on a vocabulary that it does not expect
        reason = str(error).strip().split("\n")[0]
        raise SourceError(f"transformers cannot rebuild the tokenizer: {reason}", where=file.path.name) from error
    return document


def _frame(document: Json, metadata: Mapping[str, Any], *, bos: bool) -> None:
    """The tokens around every text; `bos` is what llama.cpp does where the file does not say."""
    named = {}
    for name, wanted in (("bos", metadata.get("tokenizer.ggml.add_bos_token", bos)),
                         ("eos", metadata.get("tokenizer.ggml.add_eos_token", False))):  # fmt: skip
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if wanted and index is not None:
            named[name] = (index, metadata["tokenizer.ggml.tokens"][index])

    def sequence(which: str, kind: int) -> list[Json]:
        marks = {name: [{"SpecialToken": {"id": text, "type_id": kind}}] for name, (_, text) in named.items()}
        return [*marks.get("bos", []), {"Sequence": {"id": which, "type_id": kind}}, *marks.get("eos", [])]

    special = {text: {"id": text, "ids": [index], "tokens": [text]} for index, text in named.values()}
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": special,
    }


def _sentencepiece(document: Json, metadata: Mapping[str, Any]) -> None:
    """A space goes before the text, also before one that begins with a space, unless the file says otherwise."""
    prefix = [{"type": "Prepend", "prepend": "▁"}] if metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    document["normalizer"] = {"type": "Sequence", "normalizers": [*prefix, replace]}
    document["pre_tokenizer"] = None


def _byte_level(document: Json, split: str, where: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if split in (*PLAIN, *SINGLE_DIGITS):
        bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        digits = {"type": "Digits", "individual_digits": True}
        single = {"type": "Sequence", "pretokenizers": [digits, bytes_]}
        document["pre_tokenizer"] = single if split in SINGLE_DIGITS else bytes_
    elif split not in GGUF_PRE_TOKENIZER_SPLITS:
        raise SourceError(
            f"tokenizer.ggml.pre is {split!r}, a way to split text that is not known here", where=where,
            hint="Build from the original checkpoint",
        )  # fmt: skip
    document["model"]["ignore_merges"] = split in WHOLE_WORDS


def _settings(file: GgufFile) -> Json:
    """tokenizer_config.json: the named tokens and the chat template."""
    tokens = file.metadata["tokenizer.ggml.tokens"]
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    found: Json = {"tokenizer_class": "PreTrainedTokenizerFast"}
    found |= {f"{name}_token": tokens[index] for name, index in ids.items() if index is not None}
    template = file.metadata.get("tokenizer.chat_template")
    return found | ({"chat_template": template} if template else {})


def _generation(file: GgufFile) -> Json:
    """generation_config.json: every id that ends a text, and the defaults for sampling."""
    ids = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    kinds = file.metadata.get("tokenizer.ggml.token_type") or []
    tokens = file.metadata["tokenizer.ggml.tokens"]
    ids += [index for index, kind in enumerate(kinds) if kind == CONTROL and tokens[index] in ENDS]
    found: Json = {"eos_token_id": list(dict.fromkeys(index for index in ids if index is not None))}
    sampling = {name: file.metadata.get(f"general.sampling.{key}") for key, name in SAMPLING.items()}
    chosen = {name: value for name, value in sampling.items() if value is not None}
    return found | ({"do_sample": True, **chosen} if chosen else {})
