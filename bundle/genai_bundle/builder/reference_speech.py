# SPDX-License-Identifier: Apache-2.0
"""What a speech model itself says: features of its own extractor, and transcripts of transformers' own `generate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.closeness import Array
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.builder.reference_seq2seq import EncoderDecoder, Generated


class Speech(EncoderDecoder):
    """The model of the checkpoint with its feature extractor."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, AutoModelForSpeechSeq2Seq)
        with quiet():
            self._extractor: Any = AutoFeatureExtractor.from_pretrained(checkpoint.path, local_files_only=True)

    def features(self, audio: Array) -> Array:
        """f32[bands,frames] of f32 samples."""
        with quiet():
            made = self._extractor(audio, sampling_rate=self._extractor.sampling_rate, return_tensors="np")
        return np.asarray(made["input_features"][0])

    def transcribe(self, features: Array, start: int, steps: int, **options: Any) -> Generated:
        """Greedy tokens after the prompt, whose length is `start`."""
        with torch.no_grad(), quiet():
            output = self.model.generate(
                torch.from_numpy(features[None]), do_sample=False, num_beams=1, max_new_tokens=steps,
                return_dict_in_generate=True, output_scores=True, **options,
            )  # fmt: skip
        leads = [scores[0].float().topk(2).values for scores in output.scores]
        tokens = output.sequences[0].tolist()[-len(leads) :]
        assert len(output.sequences[0]) in (len(leads), len(leads) + start)
        return Generated(tuple(tokens), tuple(float(pair[0] - pair[1]) for pair in leads))
