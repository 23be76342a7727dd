# SPDX-License-Identifier: Apache-2.0
"""Beam search on a bundle beside transformers' `generate` on the checkpoint that it was made of, on random options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import genai_runner

EOS = 2
CASES = 25

FAMILIES = ("llama", "t5")
"""A decoder and an encoder-decoder. Of others, what forbids tokens is in the graph: log probabilities are normalised
behind it then, and not before it as in transformers."""


def drawn(rng: np.random.Generator) -> dict[str, Any]:
    """The options of a case. A bias makes ends likely enough to come."""
    beams = int(rng.integers(2, 7))
    found: dict[str, Any] = {
        "num_beams": beams,
        "n": int(rng.integers(1, beams + 1)),
        "length_penalty": float(rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0])),
        "early_stopping": [False, True, "never"][rng.integers(3)],
        "max_tokens": int(rng.integers(1, 13)),
        "logit_bias": {EOS: float(rng.integers(0, 8))},
    }
    more = {
        "repetition_penalty": round(float(rng.uniform(0.7, 1.8)), 3),
        "no_repeat_ngram_size": int(rng.integers(2, 4)),
        "min_tokens": min(int(rng.integers(1, 6)), found["max_tokens"]),
        "bad_words": [[int(word)] for word in rng.integers(3, 250, 3)],
    }
    return found | {name: value for name, value in more.items() if rng.random() < 0.35}


def theirs(model: Any, ids: list[int], options: dict[str, Any]) -> list[tuple[list[int], float]]:
    """The ids and scores of transformers' answers."""
    import torch

    found = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        use_cache=False,  # of a T5 with more layers on one side than on the other, its cache knows one number
        do_sample=False,
        num_beams=options["num_beams"],
        num_return_sequences=options["n"],
        length_penalty=options["length_penalty"],
        early_stopping=options["early_stopping"],
        max_new_tokens=options["max_tokens"],
        sequence_bias=[[[id_], value] for id_, value in options["logit_bias"].items()],
        repetition_penalty=options.get("repetition_penalty", 1.0),
        no_repeat_ngram_size=options.get("no_repeat_ngram_size", 0),
        min_new_tokens=options.get("min_tokens"),
        bad_words_ids=options.get("bad_words"),
        return_dict_in_generate=True,
        output_scores=True,
    )
    begin = 1 if model.config.is_encoder_decoder else len(ids)
    rows = [row[begin:] for row in found.sequences.tolist()]
    rows = [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]
    return list(zip(rows, found.sequences_scores.tolist(), strict=True))


def beam_differences(folder: Path, path: Path) -> list[str]:
    """Where the answers of the bundle at `path` are not those of the checkpoint in `folder`."""
    import torch
    import transformers

    hf: Any = transformers
    torch.set_num_threads(1)
    config = hf.AutoConfig.from_pretrained(folder)
    kind = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else hf.AutoModelForCausalLM
    model, told, stopped = kind.from_pretrained(folder).eval(), list[str](), 0
    with genai_runner.load(path) as pipe:
        for number in range(CASES):
            rng = np.random.default_rng(number)
            prompt = "".join(map(chr, rng.integers(97, 123, rng.integers(1, 9))))
            options = drawn(rng)
            expected, found = theirs(model, pipe.encode(prompt), options), pipe(prompt, **options).sequences
            same = [one.tokens for one in found] == [tokens for tokens, _ in expected]
            # transformers sums in float32.
            if not same or not np.allclose([one.score for one in found], [score for _, score in expected], rtol=1e-4):
                told.append(f"case {number}, {options}: {found}, not {expected}")
            stopped += sum(one.finish_reason == "stop" for one in found)
    return told if stopped else ["no answer came to its end"]
