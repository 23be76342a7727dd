# SPDX-License-Identifier: Apache-2.0
"""openvino_genai's LLMPipeline on what ``export --to openvino`` writes. Its times are those that it measures itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genai_bundle.bench import Side, Times
from genai_bundle.bench.exported import export

NAME = "openvino-genai"
PACKAGES = ("openvino_genai", "openvino", "openvino_tokenizers")
PIP = "openvino-genai openvino-tokenizers"

EXACT: dict[str, Any] = {
    "EXECUTION_MODE_HINT": "ACCURACY",
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


def prepare(bundle: Path, folder: Path, checkpoint: Path | None) -> Path:  # noqa: ARG001  it is made of the bundle
    return export(bundle, folder, "openvino")


class Engine:
    def __init__(self, side: Side) -> None:
        import openvino
        import openvino_genai

        exact = EXACT if side.precision == "exact" else {}
        self._openvino, self._genai, self._precision = openvino, openvino_genai, side.precision
        self._pipe = openvino_genai.LLMPipeline(side.source, "CPU", INFERENCE_NUM_THREADS=side.threads, **exact)

    def facts(self) -> dict[str, Any]:
        return {"version": self._openvino.__version__, "precision": self._precision}

    def run(self, ids: Sequence[int], steps: int, batch: int) -> Times:
        prompt = self._openvino.Tensor(np.tile(np.array(ids, np.int64), (batch, 1)))
        config = self._genai.GenerationConfig(max_new_tokens=steps + 1, do_sample=False, ignore_eos=True)
        raw = self._pipe.generate(prompt, config).perf_metrics.raw_metrics
        return Times(raw.m_times_to_first_token[0] / 1e6, tuple(one / 1e6 for one in raw.m_durations[::batch]))


open_engine = Engine
