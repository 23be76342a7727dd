# SPDX-License-Identifier: Apache-2.0
"""What a step of generation runs, told once: the manifest says it in its grammar, the plain loop carries it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genai_bundle.importers.graphs import SourceGraph, made_graph
from genai_bundle.importers.plain import Array, PlainGraph, Run
from genai_bundle.importers.text import Text
from genai_bundle.ports import match_ports

Json = dict[str, Any]

FIELDS = ("mask", "positions", "len", "total", "last")
"""What a graph may be told of its cache (spec/pipeline.md, State)."""


@dataclass(frozen=True)
class Cache:
    """A state of the manifest. `ports` has `{n}` for what exporters write as a layer's number."""

    name: str
    graph: str
    ports: Mapping[str, str]
    axis: int = 2
    update: str = "append"
    tokens: str | None = None
    capacity: int | None = None

    def entry(self) -> Json:
        optional = {"tokens": self.tokens, "capacity": self.capacity}
        axis = {} if self.update == "replace" else {"axis": self.axis}
        entry = {"graph": self.graph, "ports": dict(self.ports), "update": self.update, **axis}
        return entry | {key: value for key, value in optional.items() if value is not None}


@dataclass(frozen=True)
class Stage:
    """One run of a graph.

    feeds: for each port the name of a value, or a word of `FIELDS`. literals: for each port a constant.
    outputs: names for what it gives. prompt: what the source runs for the prompt in its place.
    """

    graph: SourceGraph
    feeds: Mapping[str, str]
    outputs: Mapping[str, str]
    literals: Mapping[str, Any] = field(default_factory=dict)
    prompt: SourceGraph | None = None


@dataclass(frozen=True)
class Body:
    """From ids (the value `carried`) to logits (the value `scores`).

    banned: ids that are never drawn. begin: ids that are not drawn as the first.
    """

    stages: Sequence[Stage]
    caches: Sequence[Cache]
    carried: str = "ids"
    scores: str = "logits"
    banned: tuple[int, ...] = ()
    begin: tuple[int, ...] = ()

    @property
    def logits(self) -> str:
        """The value that tokens are drawn from."""
        return "allowed" if self.banned or self.begin else self.scores

    def graphs(self) -> list[SourceGraph]:
        """The stages' graphs, each once, and what else the steps run."""
        own = {stage.graph.name: stage.graph for stage in self.stages}
        return [*own.values(), *([_allow(self.banned, self.begin)] if self.logits != self.scores else [])]

    def state(self) -> Json:
        return {cache.name: cache.entry() for cache in self.caches}

    def steps(self) -> list[Json]:
        """The manifest's steps of one iteration."""
        found = [self._step(stage) for stage in self.stages]
        given, gives = {"logits": self.scores}, {"allowed": self.logits}
        if self.begin:
            given, gives = given | {"step": "step"}, gives | {"next": "next_step"}
        return [*found, {"run": "allow", "in": given, "out": gives}] if self.logits != self.scores else found

    def carry(self) -> tuple[list[Json], Json]:
        """What goes from one iteration to the next, and the steps before the first."""
        if not self.begin:
            return [], {self.carried: "token"}
        zero = {"run": "zeros@1", "with": {"shape": [], "dtype": "i64"}, "out": {"y": "no_steps"}}
        return [zero], {self.carried: "token", "step": ["no_steps", "next_step"]}

    def _step(self, stage: Stage) -> Json:
        own = [cache for cache in self.caches if cache.graph == stage.graph.name]
        counted = next((cache for cache in own if cache.tokens), own[0] if own else None)
        given = {}
        for port, value in stage.feeds.items():
            if value in FIELDS:
                if counted is None:
                    raise stage.graph.error(f"its port {port!r} needs to know of a cache, and it has none")
                value = f"{counted.name}.{value}"
            given[port] = value
        step: Json = {"run": stage.graph.name, "in": given, "out": dict(stage.outputs)}
        return step | ({"with": dict(stage.literals)} if stage.literals else {})

    def plain(self, runs: Mapping[str, Run], values: Mapping[str, Array]) -> Callable[[Sequence[int]], Array]:
        """A function from new ids to logits, its caches empty. values: what the request computed before."""
        graphs = {}
        for stage in self.stages:
            name, ports = stage.graph.name, stage.graph.ports
            own = [cache for cache in self.caches if cache.graph == name]
            found = [
                (cache, past, present) for cache in own for past, present in match_ports(cache.ports, ports).items()
            ]
            graphs[name] = PlainGraph(
                runs[name], ports,
                {past: present for _, past, present in found},
                {past: None if cache.update == "replace" else cache.axis for cache, past, _ in found},
                frozenset(past for cache, past, _ in found if cache.update == "once"),
                (runs[stage.prompt.name], stage.prompt.ports) if stage.prompt else None,
            )  # fmt: skip

        def step(ids: Sequence[int]) -> Array:
            first = not any(graph.length for graph in graphs.values())
            known: dict[str, Any] = {**values, self.carried: np.array([ids], np.int64)}
            for stage in self.stages:
                graph = graphs[stage.graph.name]
                total = graph.length + len(ids)
                fields = {
                    "mask": np.ones((1, total)), "positions": np.arange(graph.length, total)[None],
                    "len": graph.length, "total": total, "last": total - 1,
                }  # fmt: skip
                given = {port: fields[name] if name in FIELDS else known[name] for port, name in stage.feeds.items()}
                outputs = graph(len(ids), {**given, **stage.literals})
                known |= {name: outputs[port] for port, name in stage.outputs.items()}
            logits: Array = known[self.scores]
            last: Array = logits.reshape(-1, logits.shape[-1])[-1].astype(np.float32)
            last[[*self.banned, *(self.begin if first else ())]] = -np.inf
            return last

        return step


def _allow(banned: Sequence[int], begin: Sequence[int]) -> SourceGraph:
    """Takes from the logits what is not to be drawn; with `begin` it counts the steps."""

    def taken(name: str, ids: Sequence[int]) -> str:
        values = ", ".join(map(str, ids))
        return (
            f"  {name}_ids = Constant <value = int64[{len(ids)}] {{{values}}}> ()"
            f"  {name}_rows = OneHot ({name}_ids, size, free_taken)"
            f"  {name} = ReduceMax <keepdims = 0> ({name}_rows, rows)"
        )

    parts = ["  size = Shape <start = 2, end = 3> (logits)"]
    parts += [taken("never", banned)] if banned else []
    if begin:
        parts += [taken("at_first", begin), "  first = Equal (step, none)  now = Cast <to = 1> (first)"]
        parts += ["  early = Mul (at_first, now)  next = Add (step, one)"]
    total = "Max (never, early)" if banned and begin else "Identity (never)" if banned else "Identity (early)"
    return made_graph(
        "allow",
        f"allow (float[1,S,V] logits{', int64 step' if begin else ''})"
        f" => (float[1,S,V] allowed{', int64 next' if begin else ''})"
        " <int64[1] rows = {0}, float[2] free_taken = {0.0, 1.0}, float far = {-3.0e38}, int64 none = {0},"
        f" int64 one = {{1}}> {{ {''.join(parts)}  all = {total}  truth = Cast <to = 9> (all)"
        "  allowed = Where (truth, far, logits) }",
    )


def generation(body: Body, text: Text) -> tuple[list[Json], list[SourceGraph]]:
    """The step that generates, and the graphs that it needs beside the body's.

    A bundle without a tokenizer has no ending ids of its own, so there the loop is written out with a graph that knows
    them.
    """
    start, carry = body.carry()
    if text.assets is not None or not text.eos:
        step = {"carry": carry, "do": body.steps(), "logits": body.logits, "emit": text.emit()}
        return [*start, {"generate": step}], []
    ids = ", ".join(map(str, text.eos))
    ends = made_graph(
        "ends",
        f"ends (int64[1,1] token) => (bool done) <int64[{len(text.eos)}] eos = {{{ids}}}, int64[1] flat = {{-1}},"
        " int64 none = {0}> { row = Reshape (token, flat)  same = Equal (row, eos)  found = Cast <to = 7> (same)"
        "  count = ReduceSum <keepdims = 0> (found)  done = Greater (count, none) }",
    )
    tail: list[Json] = [
        {
            "run": "sample@1", "in": {"logits": body.logits, "history": "history", "new": "new"},
            "out": {"token": "token"},
        },
        {"run": "concat@1", "in": {"a": "history", "b": "token"}, "with": {"axis": 1}, "out": {"y": "longer"}},
        {"run": "concat@1", "in": {"a": "new", "b": "token"}, "with": {"axis": 1}, "out": {"y": "more"}},
        {"run": "ends", "in": {"token": "token"}, "out": {"done": "done"}},
        {"emit": {"tokens": "token"}},
    ]  # fmt: skip
    start = [*start, {"run": "zeros@1", "with": {"shape": [1, 0], "dtype": "i64"}, "out": {"y": "none_yet"}}]
    carry |= {"history": [body.carried, "longer"], "new": ["none_yet", "more"]}
    loop = {"carry": carry, "max": "max_tokens", "until": "done", "do": [*body.steps(), *tail]}
    return [*start, {"loop": loop}], [ends]
