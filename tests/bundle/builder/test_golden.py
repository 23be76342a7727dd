# SPDX-License-Identifier: Apache-2.0
"""What a proof asks beyond the prompts, by what the config says of windows and of rotary frequencies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import optional

pytestmark = pytest.mark.torch
optional("torch", "torch")

from genai_bundle.builder.checkpoint import read_checkpoint  # noqa: E402
from genai_bundle.builder.golden import golden_prompts, questions, turn, window  # noqa: E402

STEPS = 24


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, None),
        ({"sliding_window": 64}, 64),
        ({"sliding_window": 64, "use_sliding_window": False}, None),
        ({"sliding_window": None, "attention_chunk_size": 32}, 32),
        ({"text_config": {"sliding_window": 8}, "sliding_window": 64}, 8),
    ],
)
def test_window(config: dict[str, Any], length: int | None) -> None:
    assert window(config) == length


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "max_position_embeddings": 9}, None),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 9}}, None),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 9}, 9),
        (
            {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4, "max_position_embeddings": 9},
            4,
        ),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 5}}, 5),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}, "max_position_embeddings": 9}, 9),
    ],
)
def test_turn(config: dict[str, Any], length: int | None) -> None:
    assert turn(config) == length


def test_texts_reach_what_prompts_do_not(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    changes = {
        "sliding_window": 100, "max_position_embeddings": 400,
        "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 200},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    checkpoint = read_checkpoint(folder)
    prompts = golden_prompts(checkpoint, STEPS)
    long, far, across = questions(checkpoint, prompts, STEPS).values()
    assert len(long.ids) == 116
    assert long.known == 8
    assert max(long.ids) <= checkpoint.text.largest_id
    assert far.offset + len(far.ids) + STEPS == 400
    assert across.offset + len(across.ids) < 200 < across.offset + len(across.ids) + STEPS - 1
