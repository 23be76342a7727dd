# SPDX-License-Identifier: Apache-2.0
"""The pipeline grammar, executed (spec/pipeline.md). As small as the grammar: one method a construct.

A request walks the document once. `steps` is a generator of emissions, so that a caller sees each piece of output as
soon as it exists and may stop at any time.
"""

from __future__ import annotations

import threading
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from genai_bundle.errors import GenaiError, UsageError
from genai_bundle.manifest import Emit, Generate, If, Loop, Run, Step
from genai_bundle.records import OPTION_TYPES
from genai_bundle.signatures import signature

from .arguments import Arguments
from .backends.base import Graph
from .context import DEFAULT_MAX_TOKENS
from .disciplines import DISCIPLINES, Read
from .expand import expand
from .graph_run import Cancelled, GraphRun
from .metrics import Recorder
from .ops import Env, resolve
from .program import Program
from .sequences import Sequence, TokenLogprob
from .several import answers
from .state import Group
from .turns import TurnDecoder
from .values import Emission, Value, conform, joined, truth

Scope = ChainMap[str, Value]


class Request:
    """One walk through the document. `states` are those that outlive it (scope: session)."""

    def __init__(self, program: Program, arguments: Arguments, states: Mapping[str, Group] | None = None) -> None:
        self.program, self.options, self.arguments = program, arguments.options, arguments
        self.record = Recorder(program.trace, program.load_s)
        self.env = Env(text=program.text, options=arguments.options, processors=arguments.bound(program.text))
        self.finish_reason, self.cancelled = "stop", threading.Event()  # a copy is cancelled with it
        self.prompt_tokens = 0
        self.new_tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.sequences: list[Sequence] = []  # where the request asks for several
        self._depth = 0
        apply, adapter = program.adapters.apply, arguments.adapter
        self._graphs = {name: apply(adapter, name, one.graph) for name, one in program.graphs.items()}
        self.states: dict[str, Group] = {}
        for loaded in program.graphs.values():
            for name, spec in loaded.states.items():
                group = DISCIPLINES[spec.update](name, spec, loaded.ports, self._graphs[loaded.name])
                self.states[name] = (states or {}).get(name, group)
        for group in self.states.values():
            if isinstance(group, Read):
                group.owner = self.states[group.spec.of or ""]
        self._runs: dict[str, GraphRun] = {}
        self._emitted: dict[str, list[Value]] = {name: [] for name in program.manifest.outputs}

    def run(self, inputs: Mapping[str, Value]) -> Iterator[Emission]:
        """The whole document. `inputs` holds every declared input, None where an optional one was not given."""
        return self.steps(self.program.manifest.steps, self.scope(inputs))

    def graph(self, name: str) -> Graph:
        """The graph of this name, with what the engine holds for this request."""
        return self._graphs[name]

    def graph_run(self, step: Run) -> GraphRun:
        """The run of a graph that `step` is."""
        found = self._runs.get(step.where)
        if found is None or found.step is not step:
            found = self._runs[step.where] = GraphRun(self, step)
        return found

    def check(self) -> None:
        """Before a run of a graph: end where the caller wants no more."""
        if self.cancelled.is_set():
            raise Cancelled

    def collect(self, emission: Emission) -> None:
        """Keep an emission for `outputs`."""
        self._emitted[emission.output].append(emission.value)

    def outputs(self) -> dict[str, Value]:
        """All that was collected, one value an output."""
        declared = self.program.manifest.outputs
        return {name: joined(declared[name], pieces) for name, pieces in self._emitted.items()}

    def release(self) -> None:
        """Let go of the states and of what engines hold for this request. It cannot go on after that."""
        self.states, self._graphs, self._runs = {}, {}, {}

    def scope(self, inputs: Mapping[str, Value]) -> Scope:
        """The outermost scope: the request's options under the declared inputs."""
        options: dict[str, Value] = {name: np.asarray(getattr(self.options, name)) for name in OPTION_TYPES}
        most = self.options.max_tokens
        options["max_tokens"] = np.asarray(DEFAULT_MAX_TOKENS if most is None else most)
        return ChainMap({**options, **inputs})

    def steps(self, steps: Iterable[Step], scope: Scope) -> Iterator[Emission]:
        for step in steps:
            if isinstance(step, Run):
                self._run(step, scope)
            elif isinstance(step, Emit):
                for output, name in step.values.items():
                    yield self.emission(output, self.value(name, scope, step.where), step.where)
            elif isinstance(step, If):
                yield from self._if(step, scope)
            elif isinstance(step, Loop):
                yield from self._loop(step, scope)
            else:
                yield from self._generate(step, scope)

    def emission(self, output: str, value: Value, where: str) -> Emission:
        """`value` as a piece of `output`, in its declared form."""
        return Emission(output, conform(output, self.program.manifest.outputs[output], value, where))

    def value(self, name: str, scope: Mapping[str, Value], where: str) -> Value:
        found = scope[name]
        if found is None:
            raise UsageError(f"input {name!r} is needed and was not given", where=where)
        return found

    # -- run --------------------------------------------------------------------------------------------------------

    def _run(self, step: Run, scope: Scope) -> None:
        outputs = self._call(step, scope) if step.is_op else self.graph_run(step)(scope)
        for port, name in step.outputs.items():
            scope[name] = outputs[port]

    def _call(self, step: Run, scope: Scope) -> Mapping[str, Value]:
        arguments, known = dict(step.literals), signature(step.target)
        for port, name in step.inputs.items():
            if scope[name] is not None or known is None or port not in known.optional:
                arguments[port] = self.value(name, scope, step.where)
        try:
            outputs: Mapping[str, Value] = resolve(step.target)(self.env, **arguments)
        except GenaiError as error:
            error.where = error.where or step.where
            raise
        return outputs

    # -- if, loop, generate -----------------------------------------------------------------------------------------

    def _if(self, step: If, scope: Scope) -> Iterator[Emission]:
        inner = scope.new_child()
        yield from self.steps(step.then if truth(scope[step.cond]) else step.orelse, inner)
        for name in step.out:
            scope[name] = inner[name]

    def _loop(self, step: Loop, scope: Scope) -> Iterator[Emission]:
        carried = {name: self.value(init, scope, step.where) for name, (init, _) in step.carry.items()}
        most = step.max if not isinstance(step.max, str) else int(np.asarray(scope[step.max]).item())
        self._depth += 1
        index, ended = 0, False
        while most is None or index < most:
            inner = scope.new_child(carried)
            if step.index:
                inner[step.index] = np.asarray(index, np.int64)
            if step.while_ and not truth(inner[step.while_]):
                ended = True
                break
            for name in step.reset:
                self.states[name].reset()
            yield from self.steps(step.do, inner)
            carried = {name: inner[following] for name, (_, following) in step.carry.items()}
            index += 1
            if step.until and truth(inner[step.until]):
                ended = True
                break
        self._depth -= 1
        scope.update(carried)
        if step.while_ or step.until:
            self.ended(ended)

    def _generate(self, step: Generate, scope: Scope) -> Iterator[Emission]:
        decoder = TurnDecoder(self, step, scope)
        if self.program.literal:
            yield from decoder.prefill_all_but_last_piece()
            yield from self.steps(expand(step, decoder.room), scope)
            self.new_tokens += [int(token) for token in scope["$new"].flat]
            return
        self._depth += 1
        try:
            yield from answers(decoder, self, step)
        finally:  # of a request that is cut short too
            self.new_tokens += decoder.new_tokens
            self.logprobs += decoder.logprobs
        self._depth -= 1
        self.ended(decoder.stopped)

    def emitted_tokens(self, since: int) -> list[int]:
        """Those that the outermost `generate` has emitted, from the one at `since` on; none where it emits none."""
        generates = (step for step in self.program.manifest.steps if isinstance(step, Generate))
        outputs = (output for step in generates for output, value in step.emit.items() if value == "token")
        return [int(token[0, 0]) for token in self._emitted.get(next(outputs, ""), [])[since:]]

    def ended(self, ended: bool) -> None:  # a loop has, by itself or by its bound
        if self._depth == 0:
            self.finish_reason = "stop" if ended else "length"
