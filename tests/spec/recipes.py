# SPDX-License-Identifier: Apache-2.0
"""What the specification's recipes are built beside: the tokenizer and template that spec/bundle.md describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genai_bundle.builder.recipe import build_recipe
from spec.pages import SPEC, all_blocks

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"

LETTERS = next(block.text for block in all_blocks([SPEC / "tasks.md"]) if block.info == "yaml recipe")
"""A language model that continues the alphabet."""


def tokenizer() -> dict[str, Any]:
    """Words `a` to `h` with the ids 8 to 15, `<eos>` with 1."""
    words = {"<unk>": 0, "<eos>": 1, **{letter: 8 + index for index, letter in enumerate("abcdefgh")}}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 1, "content": "<eos>", **special}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


def build(recipe: str, folder: Path, *, template: str | None = None) -> Path:
    """Write a recipe and its text files into `folder`, build it, and return the bundle's path.

    With a `template` of its own the recipe's golden vectors, which hold for `TEMPLATE`, are left out.
    """
    if template is not None:
        recipe = recipe.partition("tests:")[0]
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template or TEMPLATE, encoding="utf-8")
    target = folder / "built.genai"
    build_recipe(folder / "recipe.yaml", target)
    return target
