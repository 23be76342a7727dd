# SPDX-License-Identifier: Apache-2.0
"""The manifest's parser: records, document paths, versions (rules M7 on, V*)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from genai_bundle import FORMAT_VERSION
from genai_bundle.canonical import dumps
from genai_bundle.errors import GenaiError, InvalidBundle, ManifestError, VersionError
from genai_bundle.manifest import Emit, Generate, If, Loop, Manifest, Run, Tolerance, parse_manifest
from vectors.manifests import CHAT, LOOPS, Case, by_name, change, invalid_cases, noted, valid_cases


def parsed(name: str) -> Manifest:
    return parse_manifest(by_name(name).bytes)


def refused(document: dict[str, Any]) -> GenaiError:
    with pytest.raises(InvalidBundle) as caught:
        parse_manifest(dumps({"files": {}, **document}))
    return caught.value


@pytest.mark.parametrize("case", list(valid_cases()), ids=lambda case: case.name)
def test_valid_documents_are_read(case: Case) -> None:
    manifest = parse_manifest(case.bytes)
    assert manifest.raw == case.bytes
    assert manifest.files.keys() == case.members.keys()


@pytest.mark.parametrize("case", [case for case in invalid_cases() if case.layer == "manifest"], ids=lambda c: c.name)
def test_broken_documents_are_refused_by_their_rule(case: Case) -> None:
    with pytest.raises(VersionError if case.rule and case.rule[0] == "V" else ManifestError) as caught:
        parse_manifest(case.bytes)
    assert caught.value.rule == case.rule
    assert caught.value.where


def test_records_of_a_chat_model() -> None:
    manifest = parsed("chat")
    kv = manifest.state["kv"]
    variant = manifest.graphs["decoder"].variants[0]
    assert (kv.graph, kv.axis, kv.update, kv.tokens, kv.capacity) == ("decoder", 2, "append", "input_ids", 64)
    assert variant.when == {"backend": "onnxruntime", "device": "cpu"}
    assert kv.override(variant.state["kv"]) == dataclasses.replace(kv, update="shared")
    assert manifest.outputs["tokens"].stream_axis == 1
    assert manifest.outputs["text"].dims == ("T*",)
    assert not manifest.inputs["prompt"].required
    assert manifest.text is not None
    assert manifest.text.eos == (0,)
    assert manifest.tests[0].compare == "tokens"
    assert manifest.tests[1].inputs["messages"] == {"file": "tests/messages.json"}


def test_records_of_steps() -> None:
    choice, generate = parsed("chat").steps
    assert isinstance(choice, If)
    assert choice.cond == "messages"
    assert choice.out == ("ids",)
    assert isinstance(generate, Generate)
    assert generate.carry == {"ids": ("ids", "token")}
    assert generate.emit == {"tokens": "token", "text": "text.decode@1"}
    run = generate.do[0]
    assert isinstance(run, Run)
    assert not run.is_op
    assert run.where == "steps[1].generate.do[0]"
    assert run.inputs["attention_mask"] == "kv.mask"


def test_records_of_a_loop() -> None:
    outer, last = parsed("loops").steps
    assert isinstance(outer, Loop)
    assert (outer.max, outer.index, outer.while_, outer.until) == ("rounds", "i", None, "never")
    inner = outer.do[0]
    assert isinstance(inner, Loop)
    assert inner.max == 2
    assert inner.carry == {"inner": ("x", "next")}
    assert inner.where == "steps[0].loop.do[0]"
    assert last == Emit({"last": "x"}, "steps[1]")
    assert parsed("loops").tests[0].compare == Tolerance(abs=0.5)


def test_defaults() -> None:
    manifest = parsed("media")
    assert manifest.inputs["loud"].has_default
    assert manifest.inputs["loud"].default is False
    assert manifest.inputs["picture"].required
    assert manifest.graphs["louder"].place == "host"
    assert (manifest.state, manifest.text, manifest.tests, manifest.requires) == ({}, None, (), ())


def test_notes_change_nothing() -> None:
    plain, with_notes = parsed("chat"), parsed("notes")
    assert with_notes.raw != plain.raw
    assert dataclasses.replace(with_notes, raw=plain.raw) == plain


def test_a_newer_minor_version_keeps_the_rules_of_known_keys() -> None:
    newer = {**change(LOOPS, ("format", "1.9"), ("steps", 0, "loop", "speed", 2)), "files": {}}
    assert parse_manifest(dumps(newer)).format == "1.9"
    assert refused(change(newer, ("steps", 0, "loop", "max", -1))).rule == "M9"
    assert refused(change(newer, ("steps", 0, {"parallel": []}))).rule == "M21"
    assert refused(change(newer, ("requires", ["parallel:1"]))).rule == "V3"


def test_an_unknown_major_version_is_refused_before_anything_else() -> None:
    error = refused({"format": "2.0", "anything": "else"})
    assert error.rule == "V2"
    assert "1.0 to 1.x" in error.message
    assert FORMAT_VERSION.startswith("1.")


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (("steps", 1, "generate", "do", 0, "run", "de coder"), "steps[1].generate.do[0].run"),
        (("graphs", "decoder", "variants", 0, "when", "backend", 3), "graphs.decoder.variants[0].when.backend"),
        (("steps", 1, "generate", "do", 0, "in", "past.0", 3), "steps[1].generate.do[0].in['past.0']"),
        (("tests", 1, "in", "messages", "file", "/m.json"), "tests[1].in.messages.file"),
        (("outputs", "tokens", "dims", 0, 0), "outputs.tokens.dims[0]"),
        (("generation", "stop", 0, ""), "generation.stop[0]"),
    ],
)
def test_errors_carry_the_document_path(edit: tuple[Any, ...], where: str) -> None:
    assert refused(change(CHAT, edit)).where == where


def test_an_error_reads_as_one_line() -> None:
    error = refused(change(CHAT, ("generation", "temprature", 1)))
    assert str(error).startswith("generation: unknown key 'temprature' [M8]. Known here: ")
    assert error.exit_code == 3


def test_notes_reach_every_object() -> None:
    """The vector `notes` would prove little if `noted` skipped objects."""
    count = str(noted(CHAT)).count("x-note")
    assert count > 15
