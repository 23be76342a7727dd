# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI behind the interface. The runner's only file that imports `openvino_genai`.

Measured with 2026.4: its greedy tokens, penalties and beams are transformers' in exact arithmetic; n-grams count for
beams only, least lengths and penalties for single answers only; of a seed it looks at 32 bits.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Generator as Iteration
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genai_bundle.bundle import open_bundle
from genai_bundle.errors import BackendError, UsageError

from ..interfaces.config import GenerationConfig
from ..interfaces.pipeline import cannot
from ..interfaces.registry import Device
from ..placement import check_precision
from ._exported import exported
from ._tokens import TextSide, TokenPipeline

NAME = "openvino-genai"
SEEDS = 1 << 32
"""What its seeds are below: it leaves out higher bits and says nothing."""


def _package() -> Any:
    try:
        import openvino_genai
    except ImportError as error:
        hint = 'Try: pip install "genai-bundle[openvino-genai]"'
        raise UsageError(f"the engine {NAME!r} is not installed: {error}", hint=hint) from error
    return openvino_genai


class OpenvinoGenaiPipeline(TokenPipeline):
    engine = NAME

    def __init__(self, text: TextSide, folder: Path, device: Device, options: Mapping[str, Any]) -> None:
        about = json.loads((folder / "config.json").read_text("utf-8"))
        super().__init__(text, about.get("max_position_embeddings"))
        self._runtime = _package()
        self._model = self._runtime.LLMPipeline(str(folder), device.identifier, **options)
        self._busy = threading.Lock()

    def unable(self, config: GenerationConfig) -> None:
        beams, sampling = config.beam_search_config, config.sampling_config
        if sampling.do_sample and sampling.rng_seed >= SEEDS:
            raise cannot(NAME, "rng_seed", sampling.rng_seed, f"it takes seeds below {SEEDS}")
        if beams.num_beams == 1:
            if beams.no_repeat_ngram_size:
                raise cannot(NAME, "no_repeat_ngram_size", beams.no_repeat_ngram_size, "it has it for beams only")
            return
        if sampling.repetition_penalty != 1:
            raise cannot(NAME, "repetition_penalty", sampling.repetition_penalty, "not with beams")
        if config.min_new_tokens:
            raise cannot(NAME, "min_new_tokens", config.min_new_tokens, "not with beams")

    def ids_of(self, ids: list[int], room: int, config: GenerationConfig) -> Iteration[int]:
        """The stack pushes its ids from another thread; closing the iteration tells it to stop."""
        coming: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
        status, stop = self._runtime.StreamingStatus, threading.Event()
        base: Any = self._runtime.StreamerBase

        class Pusher(base):  # type: ignore[misc]
            def write(self, token: int | list[int]) -> Any:
                coming.put(token if isinstance(token, list) else [token])
                return status.STOP if stop.is_set() else status.RUNNING

            def end(self) -> None:
                """It is over when `generate` returns."""

        def work() -> None:
            try:
                self._run(ids, room, config, Pusher())
                coming.put(None)
            except BaseException as error:
                coming.put(error)

        worker = threading.Thread(target=work, name=NAME, daemon=True)
        worker.start()
        try:
            while (found := coming.get()) is not None:
                if isinstance(found, BaseException):
                    raise BackendError(f"{NAME} failed: {_last_line(found)}") from found
                yield from found
        finally:
            stop.set()
            worker.join()

    def answers(self, ids: list[int], room: int, config: GenerationConfig) -> list[list[int]]:
        try:
            return [list(found) for found in self._run(ids, room, config, None).tokens]
        except RuntimeError as error:
            raise BackendError(f"{NAME} failed: {_last_line(error)}") from error

    def _run(self, ids: list[int], room: int, config: GenerationConfig, streamer: Any) -> Any:
        prompt = self._runtime.openvino.Tensor(np.array([ids], np.int64))
        with self._busy:
            return self._model.generate(prompt, self._settings(room, config), streamer)

    def _settings(self, room: int, config: GenerationConfig) -> Any:
        sampling, beams = config.sampling_config, config.beam_search_config
        settings = self._runtime.GenerationConfig()
        values: dict[str, Any] = {
            "apply_chat_template": False,
            "max_new_tokens": room,
            "min_new_tokens": config.min_new_tokens,
            "stop_token_ids": set(config.eos_token_ids),
            "ignore_eos": not config.eos_token_ids,
            "do_sample": sampling.do_sample,
            "repetition_penalty": sampling.repetition_penalty,
            "num_return_sequences": beams.num_return_sequences,
        }
        if sampling.do_sample:
            values |= {"rng_seed": sampling.rng_seed, "temperature": sampling.temperature, "top_p": sampling.top_p}
            values |= {"top_k": sampling.top_k} if sampling.top_k else {}
        if beams.num_beams > 1:
            values |= {name: getattr(beams, name) for name in ("num_beams", "num_beam_groups")}
            values |= {name: getattr(beams, name) for name in ("diversity_penalty", "length_penalty")}
            values["stop_criteria"] = getattr(self._runtime.StopCriteria, beams.stop_criteria.name)
            values |= {"no_repeat_ngram_size": beams.no_repeat_ngram_size} if beams.no_repeat_ngram_size else {}
        for name, value in values.items():
            setattr(settings, name, value)
        return settings


def _last_line(error: BaseException) -> str:
    """The engine's errors begin with places in its source."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


class OpenvinoGenai:
    name = NAME

    def devices(self) -> list[Device]:
        """As OpenVINO names them. Only the CPU has been run by this project."""
        from ..backends.base import find_backend

        _package()
        listed: list[str] = find_backend("openvino").devices()  # type: ignore[attr-defined]
        return [Device(name.upper()) for name in sorted(listed, key=lambda name: name != "cpu")]

    def create(
        self, path: Path, device: Device, *, threads: int | None = None, precision: str = "exact"
    ) -> OpenvinoGenaiPipeline:
        """precision: "exact" for float32 throughout, "fast" for the engine's own defaults."""
        check_precision(precision)
        package = _package()
        bundle = open_bundle(path)
        try:
            options = {
                **(EXACT if precision == "exact" else {}),
                **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
            }
            folder = exported(bundle, "openvino", package.get_version().partition("-")[0])
            return OpenvinoGenaiPipeline(TextSide(bundle), folder, device, options)
        except BaseException:
            bundle.close()
            raise


EXACT = {
    "EXECUTION_MODE_HINT": "ACCURACY",
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}
ENGINE = OpenvinoGenai()
