# SPDX-License-Identifier: Apache-2.0
"""This runner behind the interface: every field has an effect."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genai_bundle.errors import UsageError

from ..backends.base import engine_names, find_backend
from ..decode import Decoder
from ..interfaces.config import GenerationConfig, StopCriteria, bundle_config
from ..interfaces.pipeline import (
    GeneratedSequence,
    GenerationInput,
    GenerationResult,
    Generator,
    Text2TextPipeline,
)
from ..interfaces.registry import DEFAULT, Device
from ..loading import load
from ..pipeline import Pipeline
from ..results import Result

FIRST = "onnxruntime"
"""The backend whose devices need no name in front."""

STOPPING: dict[StopCriteria, bool | str] = {
    StopCriteria.EARLY: True,
    StopCriteria.HEURISTIC: False,
    StopCriteria.NEVER: "never",
}


class BundlePipeline(Text2TextPipeline):
    engine = DEFAULT

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self._codec = pipeline, pipeline._text
        super().__init__(bundle_config(pipeline.manifest.generation, self._codec.eos))

    def refuse(self, config: GenerationConfig) -> None:
        """There is nothing that it cannot do."""

    def close(self) -> None:
        self.pipeline.close()

    def _generate(self, given: GenerationInput, config: GenerationConfig) -> GenerationResult:
        return _result(self._ending(config)(given.text, **given.given, **self._options(given, config)))

    def _stream(self, given: GenerationInput, config: GenerationConfig) -> Iterator[str]:
        pieces = self._ending(config).stream(given.text, **given.given, **self._options(given, config))
        return (str(piece) for piece in pieces)

    def _generator(self, given: GenerationInput, config: GenerationConfig) -> Generator:
        options = self._options(given, config)
        return DecoderGenerator(self, self._ending(config).generator(given.text, **given.given, **options), config)

    def _ending(self, config: GenerationConfig) -> Pipeline:
        """The pipeline for which these ids end a text. All that is loaded is shared."""
        if set(self._codec.eos) == config.eos_token_ids:
            return self.pipeline
        codec = copy.copy(self._codec)
        codec.eos = tuple(sorted(config.eos_token_ids))
        whole = self.pipeline
        return Pipeline(whole.bundle, replace(whole._program, text=codec), whole.backend_name)

    def _options(self, given: GenerationInput, config: GenerationConfig) -> dict[str, Any]:
        sampling, beams = config.sampling_config, config.beam_search_config
        options: dict[str, Any] = {
            "max_tokens": self._bound(given, config),
            "min_tokens": config.min_new_tokens,
            "stop": sorted(config.stop_strings),
            "temperature": sampling.temperature if sampling.do_sample else 0.0,
            "top_k": sampling.top_k or 0,
            "top_p": sampling.top_p,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": sampling.rng_seed,
            "no_repeat_ngram_size": beams.no_repeat_ngram_size or 0,
            "n": beams.num_return_sequences,
        }
        if beams.num_beams > 1:
            options |= {name: getattr(beams, name) for name in ("num_beams", "num_beam_groups")}
            options |= {name: getattr(beams, name) for name in ("diversity_penalty", "length_penalty")}
            options["early_stopping"] = STOPPING[beams.stop_criteria]
        return options

    def _bound(self, given: GenerationInput, config: GenerationConfig) -> int | None:
        if config.max_length is None:
            return config.max_new_tokens
        prompt = len(self.pipeline.generator(given.text, **given.given).tokens)
        if (left := config.max_length - prompt) <= 0:
            message = f"the prompt of {prompt} tokens leaves no room in {config.max_length}"
            raise UsageError(message, where="max_length")
        return left if config.max_new_tokens is None else min(left, config.max_new_tokens)


class DecoderGenerator(Generator):
    """Our decoder, in the interface's words."""

    def __init__(self, owner: BundlePipeline, decoder: Decoder, config: GenerationConfig) -> None:
        self._owner, self._decoder, self._most = owner, decoder, config.max_length
        self._stops = tuple(sorted(config.stop_strings))
        self._text = owner._codec.stream(self._stops)

    def append_input_tokens(self, tokens: str | Sequence[int]) -> None:
        added = self._owner._codec.encode(tokens, add_special=False) if isinstance(tokens, str) else list(tokens)
        self._decoder.append_tokens(added)
        self._text = self._owner._codec.stream(self._stops)

    def generate_next_token(self) -> str:
        if self.is_done:
            raise UsageError("generation is done", hint="Append tokens or make another generator")
        return self._text.push(self._decoder.generate_next_token())

    @property
    def is_done(self) -> bool:
        full = self._most is not None and len(self._decoder.tokens) >= self._most
        return self._decoder.is_done or full

    @property
    def tokens(self) -> list[int]:
        return list(self._decoder.tokens)


def _result(found: Result) -> GenerationResult:
    answers = found.sequences
    return GenerationResult.of([GeneratedSequence(one.text, list(one.tokens), one.finish_reason) for one in answers])


class Bundled:
    name = DEFAULT

    def devices(self) -> list[Device]:
        """Of every installed backend: `CPU`, `CUDA` and so on for onnxruntime, `openvino:CPU` for another one."""
        found = []
        for name in sorted(engine_names(), key=lambda name: name != FIRST):
            try:
                engine = find_backend(name)
            except UsageError:
                continue  # its package is not installed
            listed: list[str] = engine.devices() if hasattr(engine, "devices") else ["cpu"]
            front = "" if name == FIRST else f"{name}:"
            found += [Device(f"{front}{one.upper()}", {"backend": name, "device": one}) for one in listed]
        return found

    def create(self, path: Path, device: Device, **settings: Any) -> BundlePipeline:
        """settings: those of `genai_runner.load`, such as `threads`, `variant` and `precision`."""
        pipeline = load(path, **{**device.config, **settings})
        try:
            return BundlePipeline(pipeline)
        except BaseException:
            pipeline.close()
            raise


ENGINE = Bundled()
