# SPDX-License-Identifier: Apache-2.0
"""Small tokenizer.json files, one for each kind of decoder in the field, made without any download."""

from __future__ import annotations

import json
from typing import Any

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁▁", "▁the", "▁cat", "the", "cat", "s", "a", "t", ".", ",", "é", "日本"]
WORDS += ["##s", "n't", "'s", "|", "x</w>"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
LLAMA_DECODER = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]
DECODERS: dict[str, Any] = {
    "none": None,
    "llama": {"type": "Sequence", "decoders": LLAMA_DECODER},
    "gemma": {"type": "Sequence", "decoders": LLAMA_DECODER[:3]},
    "strip two": {
        "type": "Sequence",
        "decoders": [*LLAMA_DECODER[:3], {"type": "Strip", "content": " ", "start": 2, "stop": 0}],
    },
    "byte fallback": {"type": "ByteFallback"},
    "fallback, metaspace": {
        "type": "Sequence",
        "decoders": [
            {"type": "ByteFallback"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        ],
    },
    "metaspace": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "metaspace never": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
    "wordpiece": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "bpe": {"type": "BPEDecoder", "suffix": "</w>"},
    "ctc": {"type": "CTC", "pad_token": "t", "word_delimiter_token": "|", "cleanup": True},
    "byte level": BYTE_LEVEL,
    "byte level in a list": {"type": "Sequence", "decoders": [BYTE_LEVEL]},
    "unknown": {"type": "Sequence", "decoders": [LLAMA_DECODER[0], BYTE_LEVEL]},
    "replace across": {
        "type": "Sequence",
        "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "at"}, "content": ""}],
    },
}


def byte_alphabet() -> list[str]:
    """What the 256 bytes look like in a byte-level vocabulary, by the published rule."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(extra)) for byte in range(256)]


def tokenizer(decoder: Any, **changes: Any) -> bytes:
    """A WordLevel tokenizer.json over special tokens, bytes in both spellings and `WORDS`."""
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *byte_alphabet(), *WORDS, "Ġ日", "Ã©x", "<plain>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": tokens[i], "special": True, **flags} for i in range(3)]
    added.append({"id": vocabulary["<plain>"], "content": "<plain>", "special": False, **flags})
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    return json.dumps({**description, **changes}).encode()
