# SPDX-License-Identifier: Apache-2.0
"""What transformers 4 gives for beams in groups, which transformers 5 no longer has: writes group_beams.json.

The model is a table: the scores of the next token depend on the last one alone. Written once, with transformers 4.46.3:
`python tests/runner/group_beams.py`. The test reads the file and needs neither transformers nor torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("group_beams.json")
CASES, VOCABULARY, EOS = 30, 20, [2]


def table(seed: int) -> NDArray[np.float32]:
    """f32[V, V]: a row of scores for each last token. Ends are likely enough to come, and id 0 never does: it stands
    for what ended groups write, and transformers has the groups behind them pay for it."""
    scores = np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY)) * 1.5
    scores[:, EOS] += 0.5
    scores[:, 0] = -60
    return scores.astype(np.float32)


def options(seed: int) -> dict[str, Any]:
    """The options of one case, by our names."""
    rng = np.random.default_rng(1000 + seed)
    groups = int(rng.integers(2, 5))
    beams = groups * int(rng.integers(1, 4))
    found = {
        "num_beams": beams,
        "num_beam_groups": groups,
        "n": int(rng.integers(1, beams + 1)),
        "diversity_penalty": round(float(rng.uniform(0.2, 2)), 3),
        "length_penalty": float(rng.choice([0.0, 0.5, 1.0, 2.0])),
        "early_stopping": [False, True, "never"][rng.integers(3)],
        "max_tokens": int(rng.integers(2, 10)),
    }
    if rng.random() < 0.4:
        found["repetition_penalty"] = round(float(rng.uniform(0.7, 1.8)), 3)
    if rng.random() < 0.3:
        found["no_repeat_ngram_size"] = 2
    if rng.random() < 0.3:
        found["min_tokens"] = int(rng.integers(1, 4))
    return found


def prompt(seed: int) -> list[int]:
    rng = np.random.default_rng(2000 + seed)
    ids: list[int] = rng.integers(6, VOCABULARY, rng.integers(1, 5)).tolist()
    return ids


def main() -> None:
    import torch
    import transformers
    from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class Table(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
        config_class = PretrainedConfig

        def __init__(self, seed: int) -> None:
            super().__init__(PretrainedConfig(vocab_size=VOCABULARY))
            self.table = torch.nn.Parameter(torch.from_numpy(table(seed)))

        def forward(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
            return CausalLMOutput(logits=self.table[input_ids])

        def prepare_inputs_for_generation(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> Any:
            return {"input_ids": input_ids}

    cases = []
    for seed in range(CASES):
        asked, ids = options(seed), prompt(seed)
        found = Table(seed).generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            num_beams=asked["num_beams"],
            num_beam_groups=asked["num_beam_groups"],
            num_return_sequences=asked["n"],
            diversity_penalty=asked["diversity_penalty"],
            length_penalty=asked["length_penalty"],
            early_stopping=asked["early_stopping"],
            max_new_tokens=asked["max_tokens"],
            min_new_tokens=asked.get("min_tokens"),
            repetition_penalty=asked.get("repetition_penalty", 1.0),
            no_repeat_ngram_size=asked.get("no_repeat_ngram_size", 0),
            eos_token_id=EOS,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        answers = []
        for row, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
            new = row[len(ids) :]
            ends = [place + 1 for place, token in enumerate(new) if token in EOS]
            answers.append({"tokens": new[: ends[0] if ends else None], "score": score})
        cases.append({"seed": seed, "prompt": ids, "options": asked, "answers": answers})
    written = {"transformers": transformers.__version__, "eos": EOS, "cases": cases}
    FILE.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
