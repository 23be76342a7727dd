# SPDX-License-Identifier: Apache-2.0
"""Text in, text out, whatever stack is behind it: the interface that every engine implements.

The proposal's `Text2Text::Pipeline` and `Generator`, with what its users have to have besides: streams, conversations,
ids, the reason of an end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genai_bundle.errors import UsageError

from .config import GenerationConfig

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GenerationInput:
    """A text, or a conversation for the bundle's chat template. `tools` belong to a conversation."""

    text: str | None = None
    messages: Sequence[Message] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """By the names of a bundle's inputs."""
        found = {"messages": self.messages, "tools": self.tools}
        return {name: list(value) for name, value in found.items() if value is not None}


Prompt = GenerationInput | str | Sequence[Message]


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """One answer: its text, its ids, and why it ended: "stop" (by itself or by a stop string) or "length"."""

    text: str
    tokens: list[int]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The best answer, and all that were asked for."""

    text: str
    tokens: list[int]
    finish_reason: str
    sequences: tuple[GeneratedSequence, ...]

    @staticmethod
    def of(sequences: Sequence[GeneratedSequence]) -> GenerationResult:
        best = sequences[0]
        return GenerationResult(best.text, best.tokens, best.finish_reason, tuple(sequences))


class Generator(ABC):
    """One answer, token by token."""

    @abstractmethod
    def append_input_tokens(self, tokens: str | Sequence[int]) -> None:
        """Add what is not generated: a text, without special tokens, or ids. `max_new_tokens` counts from here."""

    @abstractmethod
    def generate_next_token(self) -> str:
        """Generate a token and return the text that it makes certain, often none. UsageError when `is_done`."""

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """The answer has ended, or has no room left."""

    @property
    @abstractmethod
    def tokens(self) -> list[int]:
        """All ids so far, those of the input too."""


class Text2TextPipeline(ABC):
    """A model that answers. One request at a time unless the engine says otherwise."""

    engine: str

    def __init__(self, config: GenerationConfig) -> None:
        self._config = config

    def get_generation_config(self) -> GenerationConfig:
        """A copy of what holds for calls that give no configuration; at first, what the bundle says."""
        return self._config.copy()

    def set_generation_config(self, config: GenerationConfig) -> None:
        """Raises UsageError for what this engine cannot do."""
        self._config = self._checked(config)

    def __call__(self, prompt: Prompt, config: GenerationConfig | None = None) -> GenerationResult:
        """The answer. Raises UsageError for what the configuration asks for and this engine cannot do."""
        return self._generate(_input(prompt), self._checked(config))

    def stream(self, prompt: Prompt, config: GenerationConfig | None = None) -> Iterator[str]:
        """The text of the answer as it comes."""
        return self._stream(_input(prompt), self._one(config))

    def generator(self, prompt: Prompt, config: GenerationConfig | None = None) -> Generator:
        """For callers that drive the generation themselves."""
        return self._generator(_input(prompt), self._one(config))

    @abstractmethod
    def refuse(self, config: GenerationConfig) -> None:
        """Raise UsageError for the first field that this engine cannot honour."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Text2TextPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _generate(self, given: GenerationInput, config: GenerationConfig) -> GenerationResult: ...

    @abstractmethod
    def _stream(self, given: GenerationInput, config: GenerationConfig) -> Iterator[str]: ...

    @abstractmethod
    def _generator(self, given: GenerationInput, config: GenerationConfig) -> Generator: ...

    def _checked(self, config: GenerationConfig | None) -> GenerationConfig:
        chosen = (config or self._config).copy()
        chosen.check()
        self.refuse(chosen)
        return chosen

    def _one(self, config: GenerationConfig | None) -> GenerationConfig:
        chosen = self._checked(config)
        if chosen.several:
            raise UsageError("beams and several answers come whole, not token by token", hint="Call the pipeline")
        return chosen


def cannot(engine: str, name: str, value: object, because: str = "") -> UsageError:
    """The error for a field that an engine has no way to honour."""
    reason = f": {because}" if because else ""
    hint = "Leave the field as it is, or take engine='genai-bundle'"
    return UsageError(f"{engine} cannot do {name}={value!r}{reason}", where=name, hint=hint)


def _input(prompt: Prompt) -> GenerationInput:
    found = prompt
    if isinstance(found, str):
        found = GenerationInput(found)
    elif not isinstance(found, GenerationInput):
        found = GenerationInput(messages=found)
    if (found.text is None) == (found.messages is None):
        raise UsageError("the input has a text or messages, one of both", where="GenerationInput")
    return found
