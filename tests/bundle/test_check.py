# SPDX-License-Identifier: Apache-2.0
"""The grammar check (rules P*) and the check of ports (rules G20 on)."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from genai_bundle.adapters import values_of
from genai_bundle.canonical import dumps
from genai_bundle.check import check_graphs, check_manifest
from genai_bundle.errors import GrammarError, InvalidBundle
from genai_bundle.manifest import Manifest, parse_manifest
from genai_bundle.ports import Port, Ports, match_ports
from genai_bundle.sanitize import ports_of
from genai_bundle.signatures import ops
from vectors.manifests import CHAT, CHAT_MEMBERS, LOOPS, MEDIA, SMALL, Case, by_name, change, invalid_cases, valid_cases

INVALID = list(invalid_cases())


def check(case: Case) -> None:
    """What a reader does with a manifest once its form is right."""
    manifest = parse_manifest(case.bytes)
    check_manifest(manifest)
    files = {graph.file for graph in manifest.graphs.values()}
    files |= {variant.file for graph in manifest.graphs.values() for variant in graph.variants}
    ports = {file: ports_of(onnx.load_from_string(case.members[file])) for file in files}
    for file in {file for adapter in manifest.adapters.values() for file in adapter.graphs.values()}:
        ports[file] = values_of(onnx.load_from_string(case.members[file]), file=file)
    check_graphs(manifest, ports)


def grammar(document: dict[str, Any], **members: bytes) -> Manifest:
    """A document that is checked without its graphs."""
    entry = {"size": 0, "sha256": "0" * 64}
    paths = {graph["file"] for graph in document["graphs"].values()} | set(members)
    manifest = parse_manifest(dumps({"files": dict.fromkeys(paths, entry), **document}))
    check_manifest(manifest)
    return manifest


def refused(document: dict[str, Any]) -> GrammarError:
    with pytest.raises(GrammarError) as caught:
        grammar(document)
    return caught.value


@pytest.mark.parametrize("case", list(valid_cases()), ids=lambda case: case.name)
def test_valid_pipelines_pass(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [case for case in INVALID if case.layer != "manifest"], ids=lambda case: case.name)
def test_broken_pipelines_are_refused_by_their_rule(case: Case) -> None:
    parse_manifest(case.bytes)
    with pytest.raises(InvalidBundle) as caught:
        check(case)
    assert caught.value.rule == case.rule
    assert caught.value.where


def test_a_port_fault_is_none_of_the_grammar() -> None:
    for case in INVALID:
        if case.layer == "graph":
            check_manifest(parse_manifest(case.bytes))


def test_every_rule_has_a_case() -> None:
    tried = {case.rule for case in INVALID}
    expected = [f"M{n}" for n in range(1, 27)] + ["M35", "M36"] + [f"V{n}" for n in range(1, 4)]
    expected += [f"P{n}" for n in (*range(1, 30), 36, 37, 38)] + ["G29"] + [f"G{n}" for n in range(20, 27)]
    assert [rule for rule in expected if rule not in tried] == []


def test_a_misspelt_name_is_explained() -> None:
    error = refused(change(SMALL, ("steps", 1, "emit", "y", "twiec")))
    assert str(error) == "steps[1].emit.y: no value named 'twiec' is visible here [P1]. Did you mean 'twice'?"


def test_a_carried_name_is_the_outer_one_again_after_the_loop() -> None:
    grammar(LOOPS)
    loop = {"loop": {"carry": {"x": "y2"}, "max": 1, "do": [{"run": "double", "in": {"x": "x"}, "out": {"y": "y2"}}]}}
    emit = {"emit": {"y": "x"}}
    grammar(change(SMALL, ("steps", [loop, emit])))
    again = {"run": "double", "in": {"x": "x"}, "out": {"y": "y2"}}
    grammar(change(SMALL, ("steps", [loop, again, emit])))  # the body's names are gone


def test_while_is_asked_before_the_body() -> None:
    body = [{"run": "zeros@1", "with": {"shape": [1], "dtype": "bool"}, "out": {"y": "more"}}]
    loop = {"loop": {"while": "more", "do": body}}
    assert refused(change(SMALL, ("steps", [loop]))).rule == "P1"
    carried = {"loop": {"while": "go", "carry": {"go": ["loud", "more"]}, "do": body}}
    document = change(MEDIA, ("steps", 2, carried))
    grammar(document)


def test_a_branch_that_only_emits_may_set_the_same_output_as_the_other() -> None:
    branches = {"if": "flag", "then": [{"emit": {"y": "x"}}], "else": [{"emit": {"y": "x"}}]}
    document = change(SMALL, ("inputs", "flag", {"type": "bool", "default": True}), ("steps", 1, branches))
    grammar(document)
    assert refused(change(document, ("steps", [*document["steps"], {"emit": {"y": "x"}}]))).rule == "P15"


def test_optional_inputs_are_alternatives_of_each_other() -> None:
    grammar(CHAT, **CHAT_MEMBERS)
    other = {"run": "text.chat@1", "in": {"messages": "tools"}, "out": {"ids": "ids"}}
    grammar(change(CHAT, ("steps", 0, "else", 0, other)), **CHAT_MEMBERS)
    with pytest.raises(GrammarError) as caught:
        grammar(change(CHAT, ("steps", 0, "if", "tools")), **CHAT_MEMBERS)
    assert caught.value.rule == "P13"


def test_an_option_is_a_value() -> None:
    loop = {"loop": {"max": "max_tokens", "do": []}}
    grammar(change(SMALL, ("steps", [loop, *SMALL["steps"]])))


def test_what_a_graph_gives_is_known_once_it_is_read() -> None:
    steps = [SMALL["steps"][0], {"loop": {"max": "twice", "do": []}}, SMALL["steps"][1]]
    document = change(SMALL, ("steps", steps))
    manifest = grammar(document)
    ports = {"double.onnx": ports_of(onnx.load_from_string(by_name("small").members["double.onnx"]))}
    with pytest.raises(GrammarError) as caught:
        check_graphs(manifest, ports)
    assert caught.value.rule == "P6"


def test_all_ops_of_the_grammar_are_known() -> None:
    assert set(ops()) == {
        *("text.encode@1", "text.chat@1", "text.decode@1", "sample@1", "stop@1"),
        *("zeros@1", "concat@1", "random.normal@1", "image.decode@1"),
    }


def some(*names: str) -> dict[str, Port]:
    return {name: Port(name, "f32", (1, "N")) for name in names}


def test_patterns_pair_ports() -> None:
    ports = Ports(
        some("ids", "past.0.key", "past.0.value", "past.10.key", "past.x.y.key", "past.1.key"),
        some("logits", "new.key.0", "new.value.0", "new.key.10"),
    )
    assert match_ports({"past.{n}.{h}": "new.{h}.{n}"}, ports) == {
        "past.0.key": "new.key.0",
        "past.0.value": "new.value.0",
        "past.10.key": "new.key.10",
    }
    assert match_ports({"ids": "logits"}, ports) == {"ids": "logits"}
    assert match_ports({"past{n}": "new{n}"}, ports) == {}


def test_a_placeholder_keeps_its_value() -> None:
    ports = Ports(some("a.1.1", "a.1.2"), some("b.1", "b.2"))
    assert match_ports({"a.{n}.{n}": "b.{n}"}, ports) == {"a.1.1": "b.1"}


def test_a_borrowed_state_pairs_with_the_owners_past() -> None:
    reader, owner = some("cache.0", "x"), some("past.0", "y")
    assert match_ports({"cache.{n}": "past.{n}"}, Ports(reader, owner)) == {"cache.0": "past.0"}
