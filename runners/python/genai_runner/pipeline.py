# SPDX-License-Identifier: Apache-2.0
"""What an application touches.

import genai_runner

pipe = genai_runner.load("stories.genai")
print(pipe("Once upon a time", max_tokens=32).text)
for piece in pipe.stream("Once upon a time"):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from genai_bundle.bundle import Bundle
from genai_bundle.errors import UsageError
from genai_bundle.manifest import Generate, Manifest

from .arguments import split
from .backends.base import Graph
from .conversation import Conversation
from .interpreter import Request
from .placement import Placement
from .prefix_cache import PrefixCache
from .program import Program
from .results import Result, Stream, placements
from .saved_prefixes import SavedPrefixes
from .state import Group
from .text import TextCodec
from .turns import TurnDecoder
from .values import Value

if TYPE_CHECKING:
    from .choice import Figure


@dataclass
class States:
    """What a session keeps: its states, and the adapter with which they are computed."""

    groups: dict[str, Group] = field(default_factory=dict)
    adapter: str | None = None

    def check(self, adapter: str | None) -> None:
        """Raise UsageError where what is held was computed with another adapter."""
        if self.groups and adapter != self.adapter:
            held, asked = (f"the adapter {name!r}" if name else "no adapter" for name in (self.adapter, adapter))
            raise UsageError(f"the session began with {held}, not with {asked}", hint="Start another session")


@dataclass(frozen=True)
class Session:
    """Calls that share the states declared with `scope: session`. All are with one adapter, or all without."""

    _pipeline: Pipeline
    _states: States = field(default_factory=lambda: States())

    def __call__(self, prompt: Value = None, /, **inputs_and_options: Value) -> Result:
        return self.stream(prompt, **inputs_and_options).result

    def stream(self, prompt: Value = None, /, *, output: str | None = None, **inputs_and_options: Value) -> Stream:
        return self._pipeline._start(prompt, output, inputs_and_options, self._states)


class Pipeline:
    """A loaded bundle. Calls are independent of each other and may come from several threads.

    `figures`: what was measured to choose the backend, where that was left to the runner.
    """

    def __init__(self, bundle: Bundle, program: Program, backend: str) -> None:
        self.bundle, self.backend_name = bundle, backend
        self.figures: tuple[Figure, ...] = ()
        self._program = program

    @property
    def manifest(self) -> Manifest:
        return self._program.manifest

    @property
    def variants(self) -> dict[str, str]:
        """Which file each graph runs from."""
        return {name: loaded.place.file for name, loaded in self._program.graphs.items()}

    @property
    def placements(self) -> Mapping[str, Placement]:
        """Of each graph: its file and variant, the backend and device that run it, and how exactly."""
        return placements(self._program)

    def __call__(self, prompt: Value = None, /, **inputs_and_options: Value) -> Result:
        """Run the pipeline on one request and return the whole result.

        `prompt` goes to the input called `prompt`, else to the only text input, else to the only required one. Inputs
        and the options of `Options` go by name, and so do `adapter`, one of `manifest.adapters`, `processors`, a list
        of callables (ids so far, scores f64[V]) -> scores, and `grammar`. Raises UsageError for arguments that do not
        fit, BackendError where an engine fails.
        """
        return self.stream(prompt, **inputs_and_options).result

    def stream(self, prompt: Value = None, /, *, output: str | None = None, **inputs_and_options: Value) -> Stream:
        """Run the pipeline and iterate over the pieces of `output`: the text one, else the first that grows."""
        return self._start(prompt, output, inputs_and_options, None)

    def session(self) -> Session:
        """A series of calls that keep the states declared with `scope: session`."""
        return Session(self)

    def conversation(
        self, system: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> Conversation:
        """Turns with a chat model, of which each is computed from where it differs from the ones before."""
        return Conversation(self, system, tools, **options)

    def remembering(self, prefixes: PrefixCache) -> Pipeline:
        """The same pipeline, with a cache of its own of what requests have computed."""
        return Pipeline(self.bundle, replace(self._program, prefixes=prefixes), self.backend_name)

    def forgetful(self) -> Pipeline:
        """The same pipeline, which computes all anew and keeps nothing of it."""
        return Pipeline(self.bundle, replace(self._program, prefixes=None, saved=None), self.backend_name)

    def generator(self, prompt: Value = None, /, **inputs_and_options: Value) -> TurnDecoder:
        """The mid-level interface: everything before the pipeline's `generate` is run, the rest is the caller's."""
        request, scope = self._request(prompt, inputs_and_options, None)
        if request.options.several:
            raise UsageError("a generator makes one answer", hint="Call the pipeline for n, best_of or num_beams")
        for step in self.manifest.steps:
            if isinstance(step, Generate):
                return TurnDecoder(request, step, scope)
            for emission in request.steps((step,), scope):
                request.collect(emission)
        raise UsageError("this pipeline has no `generate` among its outermost steps")

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """What earlier requests have computed, where `load` was told to keep it."""
        return self._program.prefixes

    @property
    def saved_prefixes(self) -> SavedPrefixes | None:
        """What `prefill` left for this bundle, engine and way of loading, unless `load` was told not to."""
        return self._program.saved

    @property
    def prompt_input(self) -> str | None:
        """The input that a bare prompt goes to: `prompt`, else the only text, else the only one that must be given."""
        inputs = self.manifest.inputs
        texts = [name for name, one in inputs.items() if one.type == "text"]
        required = [name for name, one in inputs.items() if one.required]
        if "prompt" in inputs:
            return "prompt"
        return next((some[0] for some in (texts, required) if len(some) == 1), None)

    @property
    def text_output(self) -> str | None:
        """The output that a person reads: `text`, else the first one of that type."""
        texts = [name for name, one in self.manifest.outputs.items() if one.type == "text"]
        return "text" if "text" in texts else next(iter(texts), None)

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of a text in the bundle's own tokenizer. UsageError where it has none."""
        return self._text.encode(text, add_special)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens. UsageError where the bundle has no tokenizer."""
        return self._text.decode(ids)

    @property
    def _text(self) -> TextCodec:
        if self._program.text is None:
            raise UsageError("this bundle has no tokenizer", where=str(self.bundle.path))
        return self._program.text

    def graph(self, name: str, *, adapter: str | None = None) -> Graph:
        """One of the bundle's graphs, loaded, for those who want to run it alone. It feeds adapters' ports itself."""
        if name not in self._program.graphs:
            raise UsageError(f"there is no graph {name!r}", hint=f"Known: {', '.join(self._program.graphs)}")
        adapters = self._program.adapters
        return adapters.apply(adapters.check(adapter), name, self._program.graphs[name].graph)

    def close(self) -> None:
        """Release the bundle's file. Graphs that are still in use keep their weights."""
        self.bundle.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -----------------------------------------------------------------------------------------------------------------

    def _start(self, prompt: Value, output: str | None, given: Mapping[str, Value], states: States | None) -> Stream:
        request, scope = self._request(prompt, given, states)
        return Stream(request, request.steps(self.manifest.steps, scope), self._streamed(output), self.text_output)

    def _request(self, prompt: Value, given: Mapping[str, Value], states: States | None) -> tuple[Request, Any]:
        arguments = split(
            self.manifest, self._program.text, prompt, self.prompt_input, given, self._program.adapters.check
        )
        adapter = arguments.adapter
        if arguments.options.several and (states is not None or self._program.literal):
            raise UsageError("a session goes on from one answer", hint="Call the pipeline for n, best_of or num_beams")
        if states is not None:
            states.check(adapter)
        request = Request(self._program, arguments, states.groups if states is not None else None)
        scope = request.scope(arguments.inputs)
        if states is not None:
            states.groups.update({name: g for name, g in request.states.items() if g.spec.scope == "session"})
            states.adapter = adapter
        return request, scope

    def _streamed(self, output: str | None) -> str:
        outputs = self.manifest.outputs
        if output is not None:
            if output not in outputs:
                raise UsageError(f"there is no output {output!r}", hint=f"Known are {', '.join(outputs)}")
            return output
        growing = [name for name, one in outputs.items() if one.stream_axis is not None]
        return self.text_output or next(iter([*growing, *outputs]), "")
