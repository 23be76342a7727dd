# SPDX-License-Identifier: Apache-2.0
"""onnxruntime-genai on what ``export --to ort-genai`` writes. Its own thread default leaves cores idle, and is set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from genai_bundle.bench import Side, Times, timed
from genai_bundle.bench.exported import export

NAME = "onnxruntime-genai"
PACKAGES = ("onnxruntime_genai",)
PIP = "onnxruntime-genai"

LEVELS = {"exact": 1, "fast": 4}
"""Of MatMulNBits: activations in float32, or in int8. Our backend sets the same for its own sessions."""


def prepare(bundle: Path, folder: Path, checkpoint: Path | None) -> Path:  # noqa: ARG001  it is made of the bundle
    return export(bundle, folder, "ort-genai")


class Engine:
    def __init__(self, side: Side) -> None:
        import onnxruntime_genai

        config = side.source / "genai_config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = side.threads
        config.write_text(json.dumps(settings), encoding="utf-8")
        at_level(side.source / settings["model"]["decoder"]["filename"], LEVELS[side.precision or "exact"])
        self._genai, self._precision = onnxruntime_genai, side.precision
        self._model = onnxruntime_genai.Model(str(side.source))

    def facts(self) -> dict[str, Any]:
        return {"version": self._genai.__version__, "precision": self._precision}

    def run(self, ids: Sequence[int], steps: int, batch: int) -> Times:
        length = len(ids) + steps + 1
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, min_length=length, max_length=length, batch_size=batch)
        generator = self._genai.Generator(self._model, params)
        prompt = np.tile(np.array(ids, np.int32), (batch, 1))

        def first() -> None:
            generator.append_tokens(prompt)
            generator.generate_next_token()

        return Times(timed(first, 1)[0], timed(generator.generate_next_token, steps))


def at_level(path: Path, level: int) -> None:
    """Set this accuracy level on every MatMulNBits of the file."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            others = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*others, onnx.helper.make_attribute("accuracy_level", level)])
    path.write_bytes(model.SerializeToString())


open_engine = Engine
