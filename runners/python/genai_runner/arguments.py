# SPDX-License-Identifier: Apache-2.0
"""A call's arguments, taken apart: inputs, options, adapter, processors and grammar all come by name.

A bundle may call an input as it likes: a declared input goes before an argument of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from genai_bundle.errors import UsageError
from genai_bundle.manifest import Generate, Manifest
from genai_bundle.records import ADAPTER

from .options import OPTIONS, Options
from .processors import Bindable, Processor
from .speculation import MODES, NONE
from .text import TextCodec
from .values import Value, coerce

PROCESSORS, GRAMMAR, SPECULATE = "processors", "grammar", "speculate"


@dataclass(frozen=True)
class Arguments:
    """What one request was given. `inputs` holds every declared input, None for an optional one that was not given."""

    inputs: Mapping[str, Value] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    adapter: str | None = None
    processors: tuple[Processor, ...] = ()
    grammar: Bindable | None = None
    speculate: str = NONE

    def bound(self, text: TextCodec | None) -> tuple[Processor, ...]:
        """The processors of one sequence: the caller's, and the grammar's own. UsageError where it has no tokenizer."""
        if self.grammar is None:
            return self.processors
        if text is None:
            raise UsageError("a grammar needs a tokenizer, and this bundle has none", where=f"argument {GRAMMAR}")
        return (*self.processors, self.grammar.bind(text))


def split(
    manifest: Manifest,
    text: TextCodec | None,
    prompt: Value,
    prompt_input: str | None,
    given: Mapping[str, Any],
    known: Callable[[Any], Any],
) -> Arguments:
    """Sort the arguments of a call. `known` checks the name of an adapter.

    Raises:
        UsageError: an argument is unknown, given twice, of another type or out of its range, or one is missing.
    """
    rest = dict(given)
    if prompt is not None:
        if prompt_input is None:
            raise UsageError("no input is the prompt of this pipeline", hint=f"By name: {', '.join(manifest.inputs)}")
        if prompt_input in rest:
            raise UsageError(f"input {prompt_input!r} is given twice")
        rest[prompt_input] = prompt

    def taken(name: str) -> Any:
        return rest.pop(name, None) if name not in manifest.inputs else None

    options = {name: taken(name) for name in OPTIONS}
    adapter, processors, grammar = known(taken(ADAPTER)), taken(PROCESSORS), taken(GRAMMAR)
    speculate = taken(SPECULATE)
    unknown = sorted(set(rest) - set(manifest.inputs))
    if unknown:
        more = [PROCESSORS, GRAMMAR, SPECULATE, *([ADAPTER] if manifest.adapters else [])]
        hint = f"Known are {', '.join([*manifest.inputs, *OPTIONS, *more])}"
        raise UsageError(f"unknown input or option {unknown[0]!r}", hint=hint)
    return Arguments(
        inputs=_inputs(manifest, rest),
        options=_spelt(_answerable(Options.merge(manifest.generation, options), manifest), text),
        adapter=adapter,
        processors=_processors(processors),
        grammar=_grammar(grammar),
        speculate=_speculate(speculate),
    )


def _inputs(manifest: Manifest, given: Mapping[str, Value]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, declared in manifest.inputs.items():
        value = given.get(name)
        if value is None and declared.has_default:
            value = declared.default
        if value is None and not declared.optional:
            raise UsageError(f"input {name!r} ({declared.type}) is needed and was not given")
        values[name] = None if value is None else coerce(name, declared, value)
    return values


def _answerable(options: Options, manifest: Manifest) -> Options:
    """The options; UsageError where they are about the answers of a `generate` that is not there."""
    asked = {"logprobs": options.logprobs is not None, "n": options.n > 1, "best_of": (options.best_of or 1) > 1,
             "num_beams": options.num_beams > 1}  # fmt: skip
    if any(asked.values()) and not any(isinstance(step, Generate) for step in manifest.steps):
        name = next(name for name, given in asked.items() if given)
        raise UsageError(f"{name} needs a `generate` among the outermost steps", where=f"option {name}")
    return options


def _spelt(options: Options, text: TextCodec | None) -> Options:
    """The options with each bad word as ids: a text as it is written at a beginning and behind a space.

    A single ending id is none, as in transformers: `ignore_eos` and `min_tokens` are for that.
    """
    if not options.bad_words:
        return options
    words: dict[tuple[int, ...], None] = {}
    for word in options.bad_words:
        if not isinstance(word, str):
            words[word] = None
        elif text is None:
            hint = "Give it as a list of ids"
            raise UsageError(
                f"{word!r} needs a tokenizer, and this bundle has none", where="option bad_words", hint=hint
            )
        else:
            forms = (word,) if word.startswith(" ") else (word, " " + word)
            words |= dict.fromkeys(tuple(text.encode(form, add_special=False)) for form in forms)
    eos = text.eos if text else ()
    ids = tuple(word for word in words if word and not (len(word) == 1 and word[0] in eos))
    return replace(options, bad_words=ids)


def _speculate(given: Any) -> str:
    if given is None:
        return NONE
    if given not in MODES:
        hint = f"Known are {', '.join(MODES)}"
        raise UsageError(f"{SPECULATE} is {given!r}, which is no way", where=f"argument {SPECULATE}", hint=hint)
    return str(given)


def _processors(given: Any) -> tuple[Processor, ...]:
    if given is None:
        return ()
    if not isinstance(given, list | tuple) or not all(callable(one) for one in given):
        raise UsageError(f"{PROCESSORS} is {given!r}, but it takes a list of callables", where=f"argument {PROCESSORS}")
    return tuple(given)


def _grammar(given: Any) -> Bindable | None:
    if given is None or isinstance(given, Bindable):
        return given
    raise UsageError(f"{GRAMMAR} is {given!r}, but it takes a Grammar", where=f"argument {GRAMMAR}")
