# SPDX-License-Identifier: Apache-2.0
"""transformers on the checkpoint that the bundle was built from: eager PyTorch, its own cache, float32 for `exact`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genai_bundle.bench import Side, Times, timed
from genai_bundle.errors import UsageError

NAME = "transformers"
PACKAGES = ("transformers", "torch")
PIP = "'genai-bundle[build]'"


def prepare(bundle: Path, folder: Path, checkpoint: Path | None) -> Path:  # noqa: ARG001  it needs the checkpoint itself
    if checkpoint is None:
        raise UsageError("transformers runs a checkpoint, not a bundle", hint="Say which with --checkpoint FOLDER")
    return checkpoint


class Engine:
    def __init__(self, side: Side) -> None:
        import torch
        import transformers

        warnings.filterwarnings("ignore", category=FutureWarning)  # of its own about its own
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(side.threads)
        self._torch, self._version = torch, transformers.__version__
        dtype = torch.float32 if side.precision == "exact" else "auto"
        model = transformers.AutoModelForCausalLM.from_pretrained(side.source, dtype=dtype, local_files_only=True)
        self._model = model.eval()

    def facts(self) -> dict[str, Any]:
        return {"version": self._version, "precision": str(self._model.dtype).removeprefix("torch.")}

    def run(self, ids: Sequence[int], steps: int, batch: int) -> Times:
        torch, model = self._torch, self._model
        cache: Any = None
        following = torch.tensor([list(ids)] * batch)

        def step() -> None:
            nonlocal cache, following
            with torch.inference_mode():
                out = model(following, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, following = out.past_key_values, out.logits[:, -1:].argmax(-1)

        return Times(timed(step, 1)[0], timed(step, steps))


open_engine = Engine
