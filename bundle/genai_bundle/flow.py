# SPDX-License-Identifier: Apache-2.0
"""The walk through the steps: which name means what where (spec/pipeline.md, Names, values and scopes).

One method for each kind of step. A body or branch works on a copy of the scope: what it assigns is gone at its end.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

from .errors import GrammarError
from .names import at
from .ports import Ports
from .records import OPTION_TYPES, Draft, Emit, Generate, If, Loop, Manifest, Run, State, Step
from .signatures import INTEGERS, Kind, Signature, fits, literal_fits, merge, ops, signature
from .steps import DRAWN


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a name. `absent`: it is an optional input that the request may leave out."""

    kind: Kind = None
    absent: bool = False


@dataclass(slots=True)
class Scope:
    """The names that are visible at one place, and which of them this scope has assigned itself."""

    visible: dict[str, Value]
    own: set[str] = field(default_factory=set)

    def child(self) -> Scope:
        """The scope of a body or branch."""
        return Scope(dict(self.visible))

    def define(self, name: str, value: Value, where: str) -> None:
        """Assign a new name."""
        if name in self.visible:
            fail("P2", f"{name!r} has a value here already", where, "Choose another name; only `carry` changes a value")
        self.rebind(name, value)

    def rebind(self, name: str, value: Value) -> None:
        """Assign a name that `carry` takes along."""
        self.visible[name] = value
        self.own.add(name)

    def read(self, name: str, where: str) -> Value:
        """The value of a visible name that is surely there."""
        value = self.find(name, where)
        if value.absent:
            fail("P13", f"the input {name!r} is optional and may be missing here", where, f"Read it under `if: {name}`")
        return value

    def find(self, name: str, where: str) -> Value:
        """The value of a visible name, which may be an optional input."""
        if name not in self.visible:
            fail("P1", f"no value named {name!r} is visible here", where, nearest(name, self.visible))
        return self.visible[name]


def fail(rule: str, message: str, where: str, hint: str | None = None) -> NoReturn:
    """Refuse the pipeline."""
    raise GrammarError(message, where=where, rule=rule, hint=hint)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A hint with the name that was probably meant."""
    found = difflib.get_close_matches(name, list(known), 1)
    return f"Did you mean {found[0]!r}?" if found else None


def runs(steps: Iterable[Step]) -> Iterator[Run]:
    """All runs in `steps`, at any depth."""
    for step in steps:
        if isinstance(step, Run):
            yield step
        elif isinstance(step, If):
            yield from runs((*step.then, *step.orelse))
        elif isinstance(step, Loop | Generate):
            yield from runs(step.do)
            if isinstance(step, Generate) and step.draft:
                yield from step.draft.do


def states_of(manifest: Manifest, graph: str, variant: int | None = None) -> dict[str, State]:
    """The states of a graph, as the default file (None) or its variant with that index sees them."""
    changes = {} if variant is None else manifest.graphs[graph].variants[variant].state
    own = {name: state for name, state in manifest.state.items() if state.graph == graph}
    return {name: state.override(changes.get(name, {})) for name, state in own.items()}


class Flow:
    """Walks a manifest's steps and raises GrammarError at the first that makes no sense.

    ports: the ports of each graph's default file, by graph; empty where graphs have not been read.
    """

    def __init__(self, manifest: Manifest, ports: Mapping[str, Ports] | None = None) -> None:
        self.manifest = manifest
        self.ports = ports or {}
        self.emitted: set[str] = set()

    def walk(self) -> None:
        """Check all steps."""
        values = {name: Value(kind) for name, kind in OPTION_TYPES.items()}
        for name, given in self.manifest.inputs.items():
            values[name] = Value("f32" if given.type == "audio" else given.type, given.optional)
        self.steps(self.manifest.steps, Scope(values), looping=False, done=set())
        for name in self.manifest.outputs:
            if name not in self.emitted:
                fail("P16", "no step emits this output", f"outputs.{name}")

    def steps(self, steps: Iterable[Step], scope: Scope, looping: bool, done: set[str]) -> None:
        """Check steps of one scope. `done`: outputs that were set on the way here."""
        for step in steps:
            if isinstance(step, Run):
                self.run(step, scope)
            elif isinstance(step, Loop):
                self.loop(step, scope, done)
            elif isinstance(step, If):
                self.branch(step, scope, looping, done)
            elif isinstance(step, Emit):
                for output, name in step.values.items():
                    where = f"{step.where}.emit.{output}"
                    self.emit(output, scope.read(name, where).kind, where, looping, done)
            else:
                self.generate(step, scope, looping, done)

    def run(self, step: Run, scope: Scope) -> None:
        """A graph or op: its inputs are visible, its outputs are new."""
        for port in step.inputs:
            if port in step.literals:
                fail("P7", f"the port {port!r} is bound by `in` and by `with`", step.where)
        called = signature(step.target) if step.is_op else None
        if step.is_op and called is None:
            fail("P4", f"unknown host op {step.target!r}", f"{step.where}.run", nearest(step.target, ops()))
        if not step.is_op and step.target not in self.manifest.graphs:
            hint = nearest(step.target, (*self.manifest.graphs, *ops()))
            fail("P3", f"no graph named {step.target!r}", f"{step.where}.run", hint)
        kinds = {port: self._read(step, port, scope, called) for port in step.inputs}
        if called is None:
            self._graph(step, kinds)
        else:
            self._op(step, called, kinds)
        known = self.ports.get(step.target)
        for port, name in step.outputs.items():
            if called is not None:
                kind = called.output_kind(port, kinds, step.literals)
            else:
                kind = known.outputs[port].dtype if known else None
            scope.define(name, Value(kind), at(f"{step.where}.out", port))

    def _read(self, step: Run, port: str, scope: Scope, called: Signature | None) -> Kind:
        """The kind of what `port` is given."""
        source, where = step.inputs[port], at(f"{step.where}.in", port)
        if "." in source:
            self._field(source, step, where)
            return "i64"
        optional = called is not None and port in called.optional
        return (scope.find(source, where) if optional else scope.read(source, where)).kind

    def _field(self, source: str, step: Run, where: str) -> None:
        """`state.field` of a state of the graph that runs."""
        name, _, key = source.partition(".")
        state = self.manifest.state.get(name)
        if state is None:
            fail("P8", f"no state named {name!r}", where, nearest(name, self.manifest.state))
        if state.graph != step.target:
            fail("P8", f"the state {name!r} belongs to {state.graph!r}, not to {step.target!r}", where)
        if key == "capacity":
            variants = range(len(self.manifest.graphs[state.graph].variants))
            seen = [state, *(states_of(self.manifest, state.graph, index)[name] for index in variants)]
            if not any(one.capacity or one.update == "ring" for one in seen):
                fail("P8", f"the state {name!r} has no capacity", where)

    def _graph(self, step: Run, kinds: dict[str, Kind]) -> None:
        known = self.ports.get(step.target)
        for port, kind in kinds.items():
            if known is not None and port in known.inputs:  # a port may be some variant's only
                self._kind(kind, known.inputs[port].dtype, at(f"{step.where}.in", port))
        graph = self.manifest.graphs[step.target]
        for variant in (None, *range(len(graph.variants))):
            for name, state in states_of(self.manifest, step.target, variant).items():
                if state.tokens and state.tokens not in step.inputs and state.tokens not in step.literals:
                    message = f"the port {state.tokens!r}, by which the state {name!r} counts tokens, is not bound"
                    fail("P21", message, step.where)

    def _op(self, step: Run, called: Signature, kinds: dict[str, Kind]) -> None:
        """An op by its signature."""
        for port in called.required:
            if port not in step.inputs and port not in step.literals:
                fail("P5", f"{step.target} needs {port!r}", step.where)
        for port, kind in kinds.items():
            if port not in called.inputs:
                fail("P5", f"{step.target} has no input {port!r}", f"{step.where}.in", nearest(port, called.inputs))
            self._kind(kind, called.inputs[port], at(f"{step.where}.in", port))
        for port, value in step.literals.items():
            want = called.literals.get(port, called.inputs.get(port))
            if want is None:
                known = (*called.literals, *called.inputs)
                fail("P5", f"{step.target} takes no {port!r}", f"{step.where}.with", nearest(port, known))
            if not literal_fits(value, want):
                fail("P5", f"{value!r} is no literal for {port!r} ({want})", at(f"{step.where}.with", port))
        for port in step.outputs:
            if port not in called.outputs:
                fail("P5", f"{step.target} gives no {port!r}", f"{step.where}.out", nearest(port, called.outputs))
        if step.target.startswith("text."):
            self.needs_text(step.where, template=step.target.startswith("text.chat@"))

    def loop(self, step: Loop, scope: Scope, done: set[str]) -> None:
        """A loop: carried names change, whatever else the body assigns is gone."""
        where = f"{step.where}.loop"
        if isinstance(step.max, str):
            kind = scope.read(step.max, f"{where}.max").kind
            if kind not in (None, "tensor", *INTEGERS):
                fail("P6", f"{step.max!r} is {kind}, a whole number was expected", f"{where}.max")
        inner = self._carried(step, scope, where)
        if step.while_:
            self._condition(inner.read(step.while_, f"{where}.while"), f"{where}.while")
        if step.index:
            inner.define(step.index, Value("i64"), f"{where}.index")
        for name in step.reset:
            if name not in self.manifest.state or self.manifest.state[name].update == "read":
                fail("P10", f"{name!r} is no state that can be emptied", f"{where}.reset")
        self.steps(step.do, inner, looping=True, done=done)
        if step.until:
            self._condition(inner.read(step.until, f"{where}.until"), f"{where}.until")
        self._carry_on(step, scope, inner, where)

    def generate(self, step: Generate, scope: Scope, looping: bool, done: set[str]) -> None:
        """The expansion's loop: the body as the author wrote it, then the drawn token."""
        where = f"{step.where}.generate"
        drawn = [name for name, (_, after) in step.carry.items() if after == DRAWN]
        if len(drawn) != 1:
            fail("P17", f"{len(drawn)} carried names have `{DRAWN}` as their next value, not one", f"{where}.carry")
        inner = self._carried(step, scope, where)
        self._kind(inner.visible[drawn[0]].kind, "i64", f"{where}.carry.{drawn[0]}")
        seen = {name: value for name, value in inner.visible.items() if name not in step.carry or name == drawn[0]}
        self.steps(step.do, inner, looping=True, done=done)
        if step.draft:
            self._draft(step.draft, Scope(seen), inner)
        self._kind(inner.read(step.logits, f"{where}.logits").kind, "tensor", f"{where}.logits")
        inner.define(DRAWN, Value("i64"), f"{where}.do")
        for output, source in step.emit.items():
            place = f"{where}.emit.{output}"
            if source == DRAWN:
                self.emit(output, "i64", place, True, done)
            else:
                self.needs_text(place)
                self.emit(output, "text", place, looping, done)
        self._carry_on(step, scope, inner, where)

    def _draft(self, draft: Draft, scope: Scope, body: Scope) -> None:
        """A body beside the other one, which knows of it the carried ids and what it carries itself."""
        places = {name: f"{draft.where}.carry.{name}" for name in draft.carry}
        for name, (given, _) in draft.carry.items():
            if given not in body.own:
                fail("P32", f"the body assigns no {given!r}", places[name], nearest(given, body.own))
            self._kind(body.visible[given].kind, "tensor", places[name])
            scope.define(name, Value("tensor"), places[name])
        scope.own.clear()
        self.steps(draft.do, scope, looping=True, done=set())
        for name, (_, own) in draft.carry.items():
            if own not in scope.own:
                fail("P32", f"the draft assigns no {own!r}", places[name], nearest(own, scope.own))
            self._kind(scope.visible[own].kind, "tensor", places[name])
        self._kind(scope.read(draft.logits, f"{draft.where}.logits").kind, "tensor", f"{draft.where}.logits")
        scope.define(DRAWN, Value("i64"), f"{draft.where}.do")

    def _carried(self, step: Loop | Generate, scope: Scope, where: str) -> Scope:
        """The body's scope, with the carried names at their first values."""
        inner = scope.child()
        for name, (initial, _) in step.carry.items():
            place = f"{where}.carry.{name}"
            value = scope.read(initial, place)
            if name != initial and name in scope.visible:
                fail("P2", f"{name!r} has a value here already", place, f"Carry it as `{name}: next`, or rename it")
            inner.visible[name] = value
        return inner

    def _carry_on(self, step: Loop | Generate, scope: Scope, inner: Scope, where: str) -> None:
        """What the body hands to the next iteration, and at the end to the scope around."""
        for name, (initial, after) in step.carry.items():
            place = f"{where}.carry.{name}"
            if after not in inner.own:
                fail("P9", f"the body assigns no {after!r}", place, nearest(after, inner.own))
            first, last = scope.visible[initial].kind, inner.visible[after].kind
            if not fits(first, last):
                fail("P6", f"{name!r} is {first} at first and {last} later", place)
        for name, (initial, after) in step.carry.items():
            kind = merge(scope.visible[initial].kind, inner.visible[after].kind)
            scope.rebind(name, Value(kind))

    def branch(self, step: If, scope: Scope, looping: bool, done: set[str]) -> None:
        """Two branches; the names in `out` leave them."""
        value = scope.find(step.cond, f"{step.where}.if")
        then, orelse = scope.child(), scope.child()
        if value.absent:
            then.visible[step.cond] = Value(value.kind)
            for name, other in scope.visible.items():  # optional inputs are alternatives of each other
                if name != step.cond:
                    orelse.visible[name] = replace(other, absent=False)
        elif value.kind not in (None, "tensor", "bool"):
            fail("P12", f"{step.cond!r} is {value.kind}, a bool or an optional input was expected", f"{step.where}.if")
        branches = ((then, step.then, set(done)), (orelse, step.orelse, set(done)))
        for inner, steps, set_here in branches:
            self.steps(steps, inner, looping, set_here)
            done |= set_here
        for name in step.out:
            for inner, side in ((then, "then"), (orelse, "else")):
                if name not in inner.own:
                    fail("P11", f"{side!r} does not assign {name!r}", f"{step.where}.out", nearest(name, inner.own))
            kinds = then.visible[name].kind, orelse.visible[name].kind
            if not fits(*kinds):
                fail("P6", f"{name!r} is {kinds[0]} or {kinds[1]}", f"{step.where}.out")
            scope.define(name, Value(merge(*kinds)), f"{step.where}.out")

    def emit(self, output: str, kind: Kind, where: str, looping: bool, done: set[str]) -> None:
        """One emission of a value of that kind."""
        declared = self.manifest.outputs.get(output)
        if declared is None:
            fail("P14", f"no output named {output!r}", where, nearest(output, self.manifest.outputs))
        self._kind(kind, "f32" if declared.type == "audio" else declared.type, where)
        if declared.stream_axis is None:
            if looping:
                fail("P15", f"{output!r} does not grow, but is emitted in a loop", where, 'Give it a dim such as "T*"')
            if output in done:
                fail("P15", f"{output!r} does not grow, but is emitted a second time", where)
            done.add(output)
        self.emitted.add(output)

    def needs_text(self, where: str, template: bool = False) -> None:
        """Something here tokenizes or renders."""
        if self.manifest.text is None:
            fail("P23", "this needs a tokenizer, and the bundle has no `text`", where)
        if template and self.manifest.text.template is None:
            fail("P23", "this needs a chat template, and `text` has none", where)

    def _kind(self, have: Kind, want: Kind, where: str) -> None:
        if not fits(have, want):
            fail("P6", f"a value of kind {have} where {want} was expected", where)

    def _condition(self, value: Value, where: str) -> None:
        if value.kind not in (None, "tensor", "bool"):
            fail("P6", f"a value of kind {value.kind} where a bool was expected", where)
