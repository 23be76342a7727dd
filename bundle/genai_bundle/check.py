# SPDX-License-Identifier: Apache-2.0
"""Whether a manifest makes sense, before any graph is read (rules P*), and whether it fits its graphs (rules G20 on).

`check_manifest` looks at the parts in the order of the document and then walks the steps (`flow`); it raises the
first GrammarError that it meets. `check_graphs` is in `wiring`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from .document import Node
from .errors import ManifestError
from .flow import Flow, fail, nearest, runs
from .layout import is_weights
from .literals import problem
from .names import at
from .ports import placeholders
from .prefix_check import arrays, check_prefixes
from .records import (
    ADAPTER,
    DOCS_FOLDER,
    OPTION_TYPES,
    Draft,
    Generate,
    If,
    Input,
    Json,
    Loop,
    Manifest,
    Output,
    State,
    Step,
    Test,
)
from .sections import parse_generation
from .wiring import check_graphs

__all__ = ["check_graphs", "check_manifest"]

_NEEDS = {"shared": ("capacity",), "scatter": ("capacity",), "ring": ("window",), "read": ("of",)}
_TAKES = {
    "capacity": ("append", "shared", "scatter", "ring"),
    "window": ("ring",),
    "of": ("read",),
    "tokens": ("append", "shared", "scatter", "ring", "replace", "once"),
}


def check_manifest(manifest: Manifest) -> None:
    """Check everything that can be known without reading a member. Raises GrammarError (rules P*)."""
    for name, given in manifest.inputs.items():
        _check_input(name, given)
        if name == ADAPTER and manifest.adapters:
            fail("P29", f"{name!r} chooses among the bundle's adapters: no input has this name", f"inputs.{name}")
    for name, state in manifest.state.items():
        _check_state(manifest, name, state)
    for name in manifest.graphs:
        _check_variants(manifest, name)
    for name, adapter in manifest.adapters.items():
        for graph in adapter.graphs:
            if graph not in manifest.graphs:
                where = at(f"{at('adapters', name)}.graphs", graph)
                fail("P30", f"no graph named {graph!r}", where, nearest(graph, manifest.graphs))
    _check_files(manifest)
    Flow(manifest).walk()
    _check_drafts(manifest)
    used = {step.target for step in runs(manifest.steps)}
    for name in manifest.graphs:
        if name not in used:
            fail("P18", "no step runs this graph", f"graphs.{name}")
    for index, test in enumerate(manifest.tests):
        _check_test(manifest, test, f"tests[{index}]")
    check_prefixes(manifest)


def _check_input(name: str, given: Input) -> None:
    where = f"inputs.{name}"
    if given.optional and given.type == "bool":
        fail("P12", "a bool is not optional", where, "Give it a default")
    if given.has_default:
        found = problem(given.default, given.type, given.dims)
        if found:
            fail("P26", f"the default {found}", f"{where}.default")
    if name in OPTION_TYPES:
        want = OPTION_TYPES[name]
        if given.type != want or given.dims is not None or given.optional:
            right = "no input has this name" if name == "stop" else f"a scalar {want}, not optional, was expected"
            fail("P29", f"{name!r} is an option of every request: {right}", where)


def _check_state(manifest: Manifest, name: str, state: State) -> None:
    where = f"state.{name}"
    if state.graph not in manifest.graphs:
        fail("P20", f"no graph named {state.graph!r}", f"{where}.graph", nearest(state.graph, manifest.graphs))
    given = {key for key in _TAKES if getattr(state, key) is not None}
    _check_update(state, given, where)
    if state.of is not None:
        owner = manifest.state.get(state.of)
        if owner is None or owner.update == "read":
            known = [other for other, one in manifest.state.items() if one.update != "read"]
            fail("P20", f"{state.of!r} is no state that can be read", f"{where}.of", nearest(state.of, known))


def _check_update(state: State, given: set[str], where: str) -> None:
    """A state has what its update needs, and nothing of `given` is without effect."""
    for key in _NEEDS.get(state.update, ()):
        if getattr(state, key) is None:
            fail("P19", f"`{state.update}` needs `{key}`", where)
    for key in sorted(given):
        if key in _TAKES and state.update not in _TAKES[key]:
            fail("P19", f"`{key}` has no meaning for `{state.update}`", f"{where}.{key}")
    if state.update == "ring" and state.capacity is not None and state.capacity < (state.window or 0):
        fail("P19", f"a capacity of {state.capacity} cannot hold a window of {state.window}", where)
    for past, present in state.ports.items():
        if placeholders(past) != placeholders(present):
            fail("P20", f"{past!r} and {present!r} differ in their placeholders", f"{where}.ports")


def _check_variants(manifest: Manifest, name: str) -> None:
    seen: set[str] = set()
    for index, variant in enumerate(manifest.graphs[name].variants):
        where = f"graphs.{name}.variants[{index}]"
        if variant.name in seen:
            fail("P22", f"two variants are named {variant.name!r}", where)
        seen.add(variant.name)
        for target, changes in variant.state.items():
            state = manifest.state.get(target)
            place = f"{where}.state.{target}"
            if state is None or state.graph != name:
                fail("P22", f"{name!r} has no state named {target!r}", place, nearest(target, manifest.state))
            if state.update == "read" and "update" in changes:
                fail("P22", "a state that is read keeps its update", place)
            _check_update(state.override(changes), set(changes), place)


def _check_drafts(manifest: Manifest) -> None:
    """What a draft computes stays with it: nothing else runs or reads the states of its graphs."""
    every = [step.target for step in runs(manifest.steps)]
    for draft in _drafts(manifest.steps):
        inside = [step.target for step in draft.do]
        kept = {name: state.graph for name, state in manifest.state.items() if state.graph in inside}
        for step in draft.do:
            if step.target in kept.values() and every.count(step.target) > inside.count(step.target):
                fail("P31", f"{step.target!r} has a state, and steps outside the draft run it too", f"{step.where}.run")
        for name, state in manifest.state.items():
            if state.of in kept and name not in kept:
                fail("P31", f"{name!r} reads {state.of!r}, a state of a draft", f"state.{name}.of")


def _drafts(steps: Iterable[Step]) -> Iterator[Draft]:
    """All drafts in `steps`, at any depth."""
    for step in steps:
        if isinstance(step, If):
            yield from _drafts((*step.then, *step.orelse))
        elif isinstance(step, Loop | Generate):
            yield from _drafts(step.do)
            if isinstance(step, Generate) and step.draft:
                yield step.draft


def _check_files(manifest: Manifest) -> None:
    """What is named is listed, what is listed is used."""
    used: set[str] = set()
    for path, where in _named_members(manifest):
        used.add(path)
        if path not in manifest.files:
            fail("P24", f"{path!r} is not listed in `files`", where, nearest(path, manifest.files))
    for path in manifest.files:
        if path not in used and not is_weights(path) and not path.startswith(DOCS_FOLDER):
            hint = f"Remove it, or put it under {DOCS_FOLDER} if it is for people"
            fail("P25", "nothing in the manifest uses this member", at("files", path), hint)


def _named_members(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Every member that the manifest names, and where it does."""
    for name, graph in manifest.graphs.items():
        yield graph.file, f"graphs.{name}.file"
        for index, variant in enumerate(graph.variants):
            yield variant.file, f"graphs.{name}.variants[{index}].file"
    for name, adapter in manifest.adapters.items():
        for graph_name, file in adapter.graphs.items():
            yield file, at(f"{at('adapters', name)}.graphs", graph_name)
    for name, prefix in manifest.prefixes.items():
        yield from ((array.file, place) for place, array in arrays(prefix, at("prefixes", name)))
    if manifest.text is not None:
        yield manifest.text.tokenizer, "text.tokenizer"
        if manifest.text.template is not None:
            yield manifest.text.template, "text.template"
    for index, test in enumerate(manifest.tests):
        for side, values in (("in", test.inputs), ("out", test.outputs)):
            for name, value in values.items():
                if isinstance(value, dict):
                    yield value["file"], f"tests[{index}].{side}.{name}.file"


def _check_test(manifest: Manifest, test: Test, where: str) -> None:
    for name, value in test.inputs.items():
        place = f"{where}.in.{name}"
        if name in manifest.inputs:
            _check_value(value, manifest.inputs[name], place)
        elif name in OPTION_TYPES:
            _check_option(name, value, place)
        elif name == ADAPTER and manifest.adapters:
            if value not in list(manifest.adapters):
                fail("P27", f"no adapter named {value!r}", place, nearest(str(value), manifest.adapters))
        else:
            known = (*manifest.inputs, *OPTION_TYPES)
            fail("P27", f"no input or option named {name!r}", place, nearest(name, known))
    for name, given in manifest.inputs.items():
        if given.required and name not in test.inputs:
            fail("P27", f"the input {name!r} is required", f"{where}.in")
    for name, value in test.outputs.items():
        place = f"{where}.out.{name}"
        if name not in manifest.outputs:
            fail("P27", f"no output named {name!r}", place, nearest(name, manifest.outputs))
        _check_value(value, manifest.outputs[name], place)


def _check_value(value: Json, declared: Input | Output, where: str) -> None:
    found = None if isinstance(value, dict) else problem(value, declared.type, declared.dims)
    if found:
        fail("P28", f"the value {found}", where)


def _check_option(name: str, value: Json, where: str) -> None:
    """An option's value keeps the bounds of `generation`."""
    bounds: Mapping[str, Json] = {name: value}
    try:
        parse_generation(Node(bounds))
    except ManifestError as error:
        fail("P28", error.message, where)
