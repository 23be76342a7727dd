# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime GenAI behind the interface. The runner's only file that imports `onnxruntime_genai`.

Measured with 0.18: its greedy tokens, penalties, n-grams, least lengths and beams are transformers'; without a top_k it
does not look at top_p; it has no groups of beams; a model's ending ids cannot be taken from it, only added to here.
"""

from __future__ import annotations

import json
from collections.abc import Generator as Iteration
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from genai_bundle.bundle import open_bundle
from genai_bundle.errors import BackendError, UsageError

from ..cores import available_cores
from ..interfaces.config import GenerationConfig, StopCriteria
from ..interfaces.pipeline import cannot
from ..interfaces.registry import Device
from ._exported import exported
from ._tokens import TextSide, TokenPipeline

NAME = "onnxruntime-genai"
PROVIDERS = {"CUDA": "cuda", "DML": "dml"}
"""Devices beside the CPU that the package is asked about. Of others it says that they are there where they are not."""

SEEDS = 1 << 31
"""What its seeds are below."""


def _package() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        hint = 'Try: pip install "genai-bundle[ort-genai]"'
        raise UsageError(f"the engine {NAME!r} is not installed: {error}", hint=hint) from error
    return onnxruntime_genai


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise BackendError(f"{NAME} failed: {str(error).strip().splitlines()[0]}") from error


class OrtGenaiPipeline(TokenPipeline):
    engine = NAME

    def __init__(self, text: TextSide, folder: Path, device: Device, threads: int) -> None:
        settings = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
        self._runtime = _package()
        self._vocabulary, self._eos = int(settings["vocab_size"]), set(settings["eos_token_id"])
        config = self._runtime.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        if provider := device.config.get("provider"):
            config.clear_providers()
            config.append_provider(provider)
        with _plainly():
            self._model = self._runtime.Model(config)
        super().__init__(text, int(settings["context_length"]))

    def unable(self, config: GenerationConfig) -> None:
        beams, sampling, eos = config.beam_search_config, config.sampling_config, config.eos_token_ids
        if lacking := sorted(self._eos - eos):
            raise cannot(NAME, "eos_token_ids", eos, f"the model ends with {lacking} there in any case")
        if eos - self._eos and (config.min_new_tokens or config.several):
            because = "ids that the model does not have are looked for in single answers without a least length"
            raise cannot(NAME, "eos_token_ids", eos, because)
        if sampling.do_sample and sampling.rng_seed >= SEEDS:
            raise cannot(NAME, "rng_seed", sampling.rng_seed, f"it takes seeds below {SEEDS}")
        if beams.num_beam_groups > 1:
            raise cannot(NAME, "num_beam_groups", beams.num_beam_groups, "it has no groups of beams")
        if beams.num_return_sequences > 1 and beams.num_beams == 1:
            raise cannot(NAME, "num_return_sequences", beams.num_return_sequences, "it returns several with beams only")
        if beams.stop_criteria is StopCriteria.NEVER:
            raise cannot(NAME, "stop_criteria", beams.stop_criteria.name, "it has EARLY and HEURISTIC")

    def ids_of(self, ids: list[int], room: int, config: GenerationConfig) -> Iteration[int]:
        with _plainly():
            generator = self._started(ids, room, config)
            while not generator.is_done():
                generator.generate_next_token()
                yield int(generator.get_next_tokens()[0])

    def answers(self, ids: list[int], room: int, config: GenerationConfig) -> list[list[int]]:
        with _plainly():
            generator = self._started(ids, room, config)
            while not generator.is_done():
                generator.generate_next_token()
        wanted = range(config.beam_search_config.num_return_sequences)
        return [generator.get_sequence(row)[len(ids) :].tolist() for row in wanted]

    def _started(self, ids: list[int], room: int, config: GenerationConfig) -> Any:
        params = self._runtime.GeneratorParams(self._model)
        params.set_search_options(**self._options(len(ids), room, config))
        generator = self._runtime.Generator(self._model, params)
        generator.append_tokens(np.array([ids], np.int32))
        return generator

    def _options(self, prompt: int, room: int, config: GenerationConfig) -> dict[str, Any]:
        sampling, beams = config.sampling_config, config.beam_search_config
        options: dict[str, Any] = {
            "do_sample": sampling.do_sample,
            "max_length": prompt + room,
            "min_length": prompt + config.min_new_tokens if config.min_new_tokens else 0,
            "repetition_penalty": sampling.repetition_penalty,
            "no_repeat_ngram_size": beams.no_repeat_ngram_size or 0,
        }
        if sampling.do_sample:
            options |= {
                "random_seed": sampling.rng_seed,
                "temperature": sampling.temperature,
                "top_k": min(sampling.top_k or self._vocabulary, self._vocabulary),
                "top_p": sampling.top_p,
            }
        if beams.num_beams > 1:
            options |= {
                "num_beams": beams.num_beams,
                "num_return_sequences": beams.num_return_sequences,
                "length_penalty": beams.length_penalty,
                "early_stopping": beams.stop_criteria is StopCriteria.EARLY,
            }
        return options


class OrtGenai:
    name = NAME

    def devices(self) -> list[Device]:
        """The CPU, and what the installed package was built for. Only the CPU has been run by this project."""
        package = _package()
        here = [name for name in PROVIDERS if getattr(package, f"is_{name.lower()}_available")()]
        return [Device("CPU"), *(Device(name, {"provider": PROVIDERS[name]}) for name in here)]

    def create(self, path: Path, device: Device, *, threads: int | None = None) -> OrtGenaiPipeline:
        _package()
        bundle = open_bundle(path)
        try:
            return OrtGenaiPipeline(
                TextSide(bundle), exported(bundle, "ort-genai"), device, threads or available_cores()
            )
        except BaseException:
            bundle.close()
            raise


ENGINE = OrtGenai()
