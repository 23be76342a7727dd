# SPDX-License-Identifier: Apache-2.0
"""llama.cpp, as the package xllamacpp carries it, on the bundle's weights in a GGUF file. Its times are its own; of the
steps it tells the mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genai_bundle.bench import Side, Times
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import BackendError, UsageError

NAME = "llama.cpp"
PACKAGES = ("xllamacpp", "gguf")
PIP = "xllamacpp gguf"

MODEL = "model.gguf"


def prepare(bundle: Path, folder: Path, checkpoint: Path | None) -> Path:
    from genai_bundle.bench.gguf_file import config_of, write_gguf

    if checkpoint is None:
        hint = "Say which with --checkpoint FOLDER"
        raise UsageError("llama.cpp needs the config.json of the checkpoint that the bundle was built from", hint=hint)
    file = folder / MODEL
    if not file.exists():
        folder.mkdir(exist_ok=True)
        part = folder / "part"
        with open_bundle(bundle) as opened:
            write_gguf(opened, config_of(checkpoint), part)
        part.rename(file)
    return file


class Engine:
    def __init__(self, side: Side) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(side.source)
        params.n_ctx, params.n_parallel, params.n_predict = side.room, 1, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = side.threads
        params.verbosity, params.fit_params = -1, False
        if side.precision == "exact":
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._server = xllamacpp.Server(params)
        self._facts = {"version": f"xllamacpp {xllamacpp.__version__}", "precision": side.precision}

    def facts(self) -> dict[str, Any]:
        return self._facts

    def run(self, ids: Sequence[int], steps: int, batch: int) -> Times:
        if batch != 1:
            raise UsageError("it is compared with one request at a time")
        times = self.generate(ids, steps + 1)["timings"]
        mean = times["predicted_ms"] / 1e3 / steps
        return Times(times["prompt_ms"] / 1e3, (mean,) * (times["predicted_n"] - 1))

    def generate(self, ids: Sequence[int], count: int) -> dict[str, Any]:
        """Greedy `tokens` after `ids`, and `timings`. Our file calls the token of an id `t` and the id."""
        wish = {"prompt": list(ids), "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        found = self._server.handle_completions(wish)
        times = found.get("timings")
        if times is None or times["prompt_n"] != len(ids):
            raise BackendError(f"llama.cpp did not run the request: {found}")
        tokens = [int(id_) for id_ in re.findall(r"t(\d+)", found["choices"][0]["text"])]
        return {"tokens": tokens, "timings": times}


open_engine = Engine
