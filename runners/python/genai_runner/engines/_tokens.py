# SPDX-License-Identifier: Apache-2.0
"""What all stacks share that take ids and give ids: the text on both sides is ours.

The prompt's ids are those that our runner gives its model, chat template and special tokens included, and the pieces of
text are cut before the same stop strings. So two stacks differ in what they compute, and in nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator as Iteration
from collections.abc import Iterator, Sequence
from contextlib import closing

from genai_bundle.bundle import Bundle
from genai_bundle.errors import UsageError

from ..context import DEFAULT_MAX_TOKENS
from ..interfaces.config import SAID, GenerationConfig, bundle_config
from ..interfaces.pipeline import (
    GeneratedSequence,
    GenerationInput,
    GenerationResult,
    Generator,
    Text2TextPipeline,
    cannot,
)
from ..loading import codec_of
from ..pipeline import Pipeline
from ..program import Program
from ..text import TextCodec

SAMPLED = ("min_p", "typical_p")
"""Defaults of a bundle that a greedy request has no use for."""


class TextSide:
    """A bundle's tokenizer, chat template and first steps, without its graphs."""

    def __init__(self, bundle: Bundle) -> None:
        codec = codec_of(bundle)
        if codec is None:
            raise UsageError("a pipeline from text to text needs a tokenizer", where=str(bundle.path))
        self.codec: TextCodec = codec
        self.generation = bundle.manifest.generation
        self.config = bundle_config(self.generation, codec.eos)
        self._pipeline = Pipeline(bundle, Program(bundle.manifest, {}, codec), "")

    def ids(self, given: GenerationInput) -> list[int]:
        """The ids that the model is given."""
        return self._pipeline.generator(given.text, **given.given).tokens

    def close(self) -> None:
        self._pipeline.close()


class TokenPipeline(Text2TextPipeline):
    """Over a stack that turns ids into ids. `context`: how many ids it takes, None where that is not known."""

    def __init__(self, text: TextSide, context: int | None) -> None:
        super().__init__(text.config)
        self.text, self.context = text, context

    @abstractmethod
    def ids_of(self, ids: list[int], room: int, config: GenerationConfig) -> Iteration[int]:
        """New ids, at most `room`, an ending one included; the iteration may be closed before its end."""

    @abstractmethod
    def answers(self, ids: list[int], room: int, config: GenerationConfig) -> list[list[int]]:
        """The ids of several answers, the best one first."""

    @abstractmethod
    def unable(self, config: GenerationConfig) -> None:
        """Raise UsageError for the first field that the stack cannot honour."""

    def refuse(self, config: GenerationConfig) -> None:
        sampled = config.sampling_config.do_sample
        for name, value in self.text.generation.items():
            if name not in SAID and (sampled or name not in SAMPLED):
                raise cannot(self.engine, name, value, "it is a default of the bundle, and this stack is not told")
        if config.several and config.stop_strings:
            raise cannot(self.engine, "stop_strings", config.stop_strings, "not with beams or several answers")
        self.unable(config)

    def close(self) -> None:
        self.text.close()

    def room(self, prompt: int, config: GenerationConfig) -> int:
        """How many ids may come. Raises UsageError for a prompt that leaves no room."""
        left = [most - prompt for most in (config.max_length, self.context) if most is not None]
        if left and min(left) <= 0:
            raise UsageError(
                f"the prompt of {prompt} tokens leaves no room in {prompt + min(left)}", where="max_length"
            )
        asked = [] if config.max_new_tokens is None else [config.max_new_tokens]
        return min([*left, *asked], default=DEFAULT_MAX_TOKENS)

    def _generate(self, given: GenerationInput, config: GenerationConfig) -> GenerationResult:
        ids = self.text.ids(given)
        room = self.room(len(ids), config)
        if config.several:
            found = [self._sequence(one, room) for one in self.answers(ids, room, config)]
            return GenerationResult.of(found)
        answer = Answer(self, ids, config)
        text = "".join(answer)
        return GenerationResult.of([GeneratedSequence(text, answer.new, answer.finish_reason)])

    def _stream(self, given: GenerationInput, config: GenerationConfig) -> Iterator[str]:
        return iter(Answer(self, self.text.ids(given), config))

    def _generator(self, given: GenerationInput, config: GenerationConfig) -> Generator:
        return TokenGenerator(self, self.text.ids(given), config)

    def _sequence(self, new: list[int], room: int) -> GeneratedSequence:
        return GeneratedSequence(self.text.codec.decode(new), new, "length" if len(new) >= room else "stop")


class Answer:
    """One answer as it comes: pieces of text, and the ids behind them."""

    def __init__(self, pipeline: TokenPipeline, ids: Sequence[int], config: GenerationConfig) -> None:
        self.new: list[int] = []
        self._eos = config.eos_token_ids
        self._room = pipeline.room(len(ids), config)
        self._text = pipeline.text.codec.stream(tuple(sorted(config.stop_strings)))
        self._ended = False
        self._coming = pipeline.ids_of(list(ids), self._room, config) if self._room else _nothing()

    @property
    def finish_reason(self) -> str:
        return "stop" if self._ended else "length"

    @property
    def is_done(self) -> bool:
        return self._ended or len(self.new) >= self._room

    def next(self) -> str:
        """One more id, and the text that it makes certain."""
        token = next(self._coming, None)
        if token is None:  # the stack saw an end of its own
            self._ended = True
            return ""
        self.new.append(token)
        piece = self._text.push(token)
        self._ended = token in self._eos or self._text.stopped
        return piece

    def __iter__(self) -> Iterator[str]:
        with closing(self._coming):
            while not self.is_done:
                if piece := self.next():
                    yield piece
        if rest := self._text.flush():
            yield rest

    def close(self) -> None:
        self._coming.close()


class TokenGenerator(Generator):
    """Token by token. What is appended starts the stack anew with all ids so far."""

    def __init__(self, pipeline: TokenPipeline, ids: list[int], config: GenerationConfig) -> None:
        self._pipeline, self._config = pipeline, config
        self._given = list(ids)
        self._answer = Answer(pipeline, self._given, config)

    def append_input_tokens(self, tokens: str | Sequence[int]) -> None:
        text = self._pipeline.text.codec
        added = text.encode(tokens, add_special=False) if isinstance(tokens, str) else [int(one) for one in tokens]
        given = self.tokens + added
        answer = Answer(self._pipeline, given, self._config)
        self._answer.close()
        self._given, self._answer = given, answer

    def generate_next_token(self) -> str:
        if self.is_done:
            raise UsageError("generation is done", hint="Append tokens or make another generator")
        return self._answer.next()

    @property
    def is_done(self) -> bool:
        return self._answer.is_done

    @property
    def tokens(self) -> list[int]:
        return self._given + self._answer.new


def _nothing() -> Iteration[int]:
    yield from ()
