# SPDX-License-Identifier: Apache-2.0
"""A decoder twice: both go on as if there were no other, for every way of keeping state on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genai_runner
from conftest import BACKENDS
from runner import disciplines as made
from runner.disciplines import IDS
from runner.tiny import bundle, model

RING = {"start": "kv.len", "last": "kv.last", "filled": "kv.mask"}
KINDS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "append": (made.GROWING, {"total": "kv.total"}, {"update": "append"}),
    "shared": (made.decoder("", "P", made.BUFFER), {}, {"update": "shared", "capacity": 30}),
    "scatter": (made.decoder("", "20", made.BUFFER), {}, {"update": "scatter", "capacity": 20}),
    "ring": (made.ring(9, 4, operator=False), RING, {"update": "ring", "window": 4, "capacity": 9}),
}


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A generation whose scores are the last head's output: they depend on all that the state holds."""
    graph, fields, state = KINDS[request.param]
    run = {"run": "decoder", "in": {"ids": "ids", "positions": "kv.positions", **fields}, "out": {"y": "y"}}
    generate = {"carry": {"ids": "token"}, "do": [run], "logits": "y", "emit": {"tokens": "token"}}
    manifest = {
        "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}},
        "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}},
        "state": {"kv": {"graph": "decoder", "ports": {"p{x}": "n{x}"}, "axis": 2, "tokens": "ids", **state}},
        "steps": [{"generate": generate}],
    }
    return bundle(tmp_path / "x.genai", {"decoder": model(graph, "")}, manifest)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rewound", [False, True], ids=["as it came", "rewound"])
def test_both_go_on_by_themselves(path: Path, backend: str, rewound: bool) -> None:
    with genai_runner.load(path, backend, threads=1) as pipe:

        def alone(ids: list[int]) -> Any:
            return pipe.generator(ids=ids).get_logits()

        first = pipe.generator(ids=IDS[:3])
        for token in IDS[3:8]:
            first.accept(token)
            first.get_logits()
        if rewound:
            first.rewind_to(7)
        second = first.fork()
        third = second.fork()
        ways = {first: [1, 2, 3], second: [15, 14, 13], third: [7, 7, 7]}
        for at in range(3):
            for decoder, tokens in ways.items():
                decoder.accept(tokens[at])
                np.testing.assert_allclose(decoder.get_logits(), alone(decoder.tokens), atol=2e-5)
        assert second.tokens == [*IDS[: 7 if rewound else 8], 15, 14, 13]
        assert third.new_tokens[-3:] == [7, 7, 7]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fork_before_anything_was_run(path: Path, backend: str) -> None:
    with genai_runner.load(path, backend, threads=1) as pipe:
        first = pipe.generator(ids=IDS[:5])
        second = first.fork()
        first.accept(3)
        second.accept(4)
        for decoder in (first, second):
            expected = pipe.generator(ids=decoder.tokens).get_logits()
            np.testing.assert_allclose(decoder.get_logits(), expected, atol=2e-5)
