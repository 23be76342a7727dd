# SPDX-License-Identifier: Apache-2.0
"""The commonest pipeline, seen whole: a prompt becomes ids, and one graph with its caches continues them.

Other stacks know this one by heart and say only its parts. A bundle that does anything else is told apart here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genai_bundle.bundle import Bundle
from genai_bundle.errors import UsageError
from genai_bundle.exports import AUTO, PORTABLE
from genai_bundle.manifest import Generate, If, Json, Manifest, Run, State, Step
from genai_bundle.ports import Ports, match_ports

ENCODERS = ("text.encode@1", "text.chat@1")


@dataclass(frozen=True)
class Cache:
    """A state of the decoder as this form of it has it, with its ports {past: present} in the graph's order."""

    name: str
    state: State
    pairs: Mapping[str, str]


@dataclass(frozen=True)
class Generator:
    """The one graph that runs for each token, in the chosen form.

    feeds: {port: "ids", or the field of its state}. literals: {port: value}. logits: the port that has them.
    """

    graph: str
    variant: str
    file: str
    ports: Ports
    feeds: Mapping[str, str]
    literals: Mapping[str, Json]
    logits: str
    caches: Sequence[Cache]

    def port(self, role: str) -> str | None:
        """The port that is fed with `role`."""
        return next((port for port, fed in self.feeds.items() if fed == role), None)

    @property
    def context(self) -> int | None:
        """The most tokens that the caches hold together."""
        return min((one.state.capacity for one in self.caches if one.state.capacity), default=None)


def file_of(manifest: Manifest, graph: str, variant: str) -> str:
    """The member of a graph in the form `variant`; its default where it has none of that name."""
    entry = manifest.graphs[graph]
    return next((one.file for one in entry.variants if one.name == variant), entry.file)


def state_of(manifest: Manifest, name: str, variant: str) -> State:
    """A state as the form `variant` of its graph has it."""
    state = manifest.state[name]
    changes = (one.state.get(name, {}) for one in manifest.graphs[state.graph].variants if one.name == variant)
    return state.override(next(changes, {}))


def chosen(manifest: Manifest, variant: str, *, engine: str | None = None) -> str:
    """The name of a form of the bundle; for `auto` the first made for `engine` on a CPU, or else portable."""
    variants = [one for graph in manifest.graphs.values() for one in graph.variants]
    if variant == AUTO:
        fits = (one.name for one in variants if (one.when["backend"], one.when.get("device", "cpu")) == (engine, "cpu"))
        return next(fits, PORTABLE)
    names = [PORTABLE, *dict.fromkeys(one.name for one in variants)]
    if variant not in names:
        raise UsageError(f"the bundle has no variant {variant!r}", where="--variant", hint=f"It has {', '.join(names)}")
    return variant


def generator(bundle: Bundle, variant: str) -> Generator:
    """The bundle as a generator. Raises UsageError, which says what it does beside generating."""
    manifest = bundle.manifest
    *before, last = manifest.steps or (None,)
    for step in before:
        _check_begin(step)
    if not isinstance(last, Generate):
        raise _other("its steps do not end with `generate`")
    [run] = last.do if len(last.do) == 1 else (None,)
    if not isinstance(run, Run) or run.is_op:
        raise _other("it does more than run one graph for each token")
    carried = {name: following for name, (_, following) in last.carry.items()}
    if list(carried.values()) != ["token"]:
        raise _other("it carries more than the new token from one step to the next")
    file = file_of(manifest, run.target, variant)
    ports = bundle.ports(file)
    feeds = {port: _role(port, value, carried) for port, value in run.inputs.items() if port in ports.inputs}
    literals = {port: value for port, value in run.literals.items() if port in ports.inputs}
    logits = next(port for port, value in run.outputs.items() if value == last.logits)
    drafted = {one.target for one in last.draft.do} if last.draft else set()  # what guesses is of no use elsewhere
    kept = [name for name, state in manifest.state.items() if state.graph not in drafted]
    states = {name: state_of(manifest, name, variant) for name in kept}
    caches = [Cache(name, state, match_ports(state.ports, ports)) for name, state in states.items()]
    return Generator(run.target, variant, file, ports, feeds, literals, logits, caches)


def lost_draft(manifest: Manifest) -> list[str]:
    """One line where the bundle has a draft."""
    has = any(isinstance(step, Generate) and step.draft for step in manifest.steps)
    return ["generate.draft: what guesses tokens for the model is left out"] if has else []


def _other(reason: str) -> UsageError:
    return UsageError(
        f"this bundle is not just a prompt that one graph continues: {reason}", where="steps",
        hint="'--to folder' takes any bundle",
    )  # fmt: skip


def _check_begin(step: Step | None) -> None:
    """What comes before generating only makes ids of a text or a conversation."""
    for one in (*step.then, *step.orelse) if isinstance(step, If) else (step,):
        if not isinstance(one, Run) or one.target not in ENCODERS:
            what = f"it runs {one.target!r} first" if isinstance(one, Run) else "it does other things first"
            raise _other(what)


def _role(port: str, value: str, carried: Mapping[str, str]) -> str:
    if value in carried:
        return "ids"
    state, dot, field = value.partition(".")
    if not dot:
        raise _other(f"the input {port!r} of its graph reads {state!r} at every step")
    return field
