# SPDX-License-Identifier: Apache-2.0
"""What an encoder-decoder itself says: hidden states, logits, and the tokens of transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.closeness import Array
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.parity_seq2seq import Answer
from genai_bundle.builder.source_model import source_model


@dataclass(frozen=True)
class Generated:
    """New tokens of `generate`, and by how much each led the second candidate."""

    tokens: tuple[int, ...]
    leads: tuple[float, ...]

    def sure(self, margin: float) -> list[int]:
        """The tokens before the first that does not lead by more than `margin`."""
        unsure = next((index for index, lead in enumerate(self.leads) if not lead > margin), len(self.tokens))
        return list(self.tokens[:unsure])


class EncoderDecoder:
    """The model of the checkpoint, see `source_model`. `auto` is the class of transformers that chooses its class."""

    def __init__(self, checkpoint: Checkpoint, auto: Any) -> None:
        self.model = source_model(checkpoint, auto)

    def answer(self, heard: Mapping[str, Array], start: Sequence[int], steps: int) -> Answer:
        """Greedy tokens of one request, one cached step each, not stopping at an end-of-text token."""
        feeds = {name: torch.from_numpy(row[None]) for name, row in heard.items()}
        tokens, rows, feed = list[int](), list[Array](), list(start)
        with torch.no_grad(), quiet():
            encoded = self.model.get_encoder()(**feeds, return_dict=True)
            cache = None
            for _ in range(steps):
                output = self.model(
                    encoder_outputs=encoded, decoder_input_ids=torch.tensor([feed]), past_key_values=cache,
                    use_cache=True,
                )  # fmt: skip
                cache = output.past_key_values
                rows.append(output.logits[0].float().numpy())
                feed = [int(rows[-1][-1].argmax())]
                tokens += feed
        return Answer(heard, encoded.last_hidden_state[0].numpy(), tuple(start), tuple(tokens), np.concatenate(rows))

    def generate(self, heard: Mapping[str, Array], start: Sequence[int], steps: int, **options: Any) -> Generated:
        """Greedy tokens of transformers' own `generate`, with what generation_config.json asks for."""
        feeds = {name: torch.from_numpy(row[None]) for name, row in heard.items()}
        with torch.no_grad(), quiet():
            output = self.model.generate(
                **feeds, decoder_input_ids=torch.tensor([list(start)]), do_sample=False, num_beams=1,
                max_new_tokens=steps, return_dict_in_generate=True, output_scores=True,
                past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()), **options,
            )  # fmt: skip
        tokens = output.sequences[0, len(start) :].tolist()
        best = [scores[0].float().topk(2).values for scores in output.scores]
        return Generated(tuple(tokens), tuple(float(pair[0] - pair[1]) for pair in best))
