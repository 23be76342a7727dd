# SPDX-License-Identifier: Apache-2.0
"""The pages of the host ops: their tables are the signatures, and their vectors hold."""

from __future__ import annotations

import base64
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from genai_bundle.errors import GenaiError
from genai_runner import philox
from genai_runner.ops import Env, resolve
from genai_runner.sampling import Options
from genai_runner.text import TextCodec
from spec.pages import ROOT, SPEC, Block, all_blocks, split

SIGNATURES: Mapping[str, Any] = json.loads((ROOT / "schema/v1/ops.json").read_text(encoding="utf-8"))
PAGES = sorted((SPEC / "ops").glob("*.md"))
BLOCKS = all_blocks(PAGES)
(TOKENIZER,) = (block.text.encode() for block in BLOCKS if block.info == "json tokenizer")
DTYPES = {"f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32, "u8": np.uint8, "bool": np.bool_}


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.info == kind]


def tables() -> dict[str, dict[str, dict[str, str]]]:
    """op -> in, with, out -> port -> type, as the pages' tables have it. An op's table stands under its heading."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for page in PAGES:
        op = ""
        for _, line in split(page)[0]:
            if heading := re.fullmatch(r"#+ ([a-z.]+@\d+)", line):
                op = heading[1]
                found[op] = {"in": {}, "with": {}, "out": {}}
            elif row := re.match(r"\| `([a-z_]+\??)` \| (in|with|out) \| ([^|]+) \|", line):
                found[op][row[2]][row[1]] = row[3].strip()
    return found


def test_tables_are_the_signatures() -> None:
    assert tables() == SIGNATURES


@pytest.mark.parametrize("op", SIGNATURES)
def test_functions_take_what_the_signatures_say(op: str) -> None:
    """Required ports are parameters without a default; optional ones have the default that is stated."""
    parameters = dict(list(inspect.signature(resolve(op)).parameters.items())[1:])
    rest = {name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD}
    ports = {**SIGNATURES[op]["in"], **SIGNATURES[op]["with"]}
    assert set(parameters) - rest <= {port.rstrip("?") for port in ports}
    for port, kind in ports.items():
        parameter = parameters.get(port.rstrip("?"))
        if parameter is None:
            assert rest
            assert port.endswith("?")
            continue
        assert (parameter.default is not parameter.empty) == port.endswith("?")
        _, _, default = kind.partition(" = ")
        if default:
            assert parameter.default == (default if kind.startswith("dtype") else json.loads(default))


def value(given: Any, kind: str) -> Any:
    """A value of a vector as an op is given it."""
    if isinstance(given, dict) and "base64" in given:
        return base64.b64decode(given["base64"])
    if kind in ("text", "messages", "bytes") or isinstance(given, str):
        return given
    array = np.asarray(given)
    if kind == "tensor":
        return array.astype(np.float32) if array.dtype.kind == "f" else array
    return array.astype(DTYPES[kind]) if array.dtype.kind != "O" else given


def run_of(op: str, env: Env, run: Mapping[str, Any]) -> Mapping[str, Any]:
    kinds = {port.rstrip("?"): kind for port, kind in SIGNATURES[op]["in"].items()}
    bound = {port: value(given, kinds[port]) for port, given in run.get("in", {}).items()}
    return resolve(op)(env, **bound, **run.get("with", {}))


def check(op: str, env: Env, run: Mapping[str, Any]) -> None:
    if "refused" in run:
        with pytest.raises(GenaiError) as caught:
            run_of(op, env, run)
        assert run["refused"] in str(caught.value)
        assert not run["refused"] or op in str(caught.value)
        return
    outputs = run_of(op, env, run)
    assert set(outputs) == set(run["out"]) == set(SIGNATURES[op]["out"])
    for port, kind in SIGNATURES[op]["out"].items():
        given, expected = outputs[port], run["out"][port]
        if kind == "text":
            assert given == expected
            continue
        if kind in DTYPES:
            assert given.dtype == DTYPES[kind]
        assert given.shape == np.asarray(expected).shape
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6 if given.dtype.kind == "f" else 0)


@pytest.mark.parametrize("block", of_kind("json vector"))
def test_a_vector_holds(block: Block) -> None:
    vector = json.loads(block.text)
    codec = None
    if (text := vector.get("text")) is not None:
        codec = TextCodec(TOKENIZER, text.get("template"), text.get("eos", ()), text.get("special"))
    env = Env(codec, Options.merge({}, vector.get("options", {})))
    for run in vector.get("runs", [vector]):
        check(vector["op"], env, run)


def test_every_op_has_vectors_that_hold_and_vectors_that_are_refused() -> None:
    vectors = [json.loads(block.text) for block in BLOCKS if block.info == "json vector"]
    assert {vector["op"] for vector in vectors if "refused" not in vector} == set(SIGNATURES)
    assert {vector["op"] for vector in vectors if "refused" in vector} == set(SIGNATURES)


@pytest.mark.parametrize("block", of_kind("json philox"))
def test_t30_words_of_philox(block: Block) -> None:
    known = {name: [int(word, 16) for word in words] for name, words in json.loads(block.text).items()}
    k0, k1 = known["key"]
    c0, c1, c2, c3 = known["counter"]
    assert list(philox.block((k0, k1), (c0, c1, c2, c3))) == known["words"]
