# SPDX-License-Identifier: Apache-2.0
"""State disciplines, each by itself: what a run is fed, what it leaves, and what rewinding forgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from genai_bundle.errors import UsageError
from genai_bundle.manifest import State
from genai_bundle.ports import Port, Ports
from genai_runner.backends.scripted import ScriptedGraph
from genai_runner.disciplines import DISCIPLINES, Read
from genai_runner.state import Group

PAST = Port("p.0.key", "f32", ("batch", 2, "past", 3))
IDS = Port("ids", "i64", ("batch", "seq"))
PORTS = Ports({"ids": IDS, PAST.name: PAST}, {"q.0.key": Port("q.0.key", "f32", ("batch", 2, "total", 3))})
GRAPH = ScriptedGraph("decoder", [], [])
I32 = Port("lengths", "i32", ("batch",))
I64 = Port("mask", "i64", ("batch", "total"))


def group(update: str, ports: Ports = PORTS, **fields: Any) -> Group:
    spec = State(graph="decoder", ports={"p.{n}.{h}": "q.{n}.{h}"}, update=update, tokens="ids", **fields)
    return DISCIPLINES[update]("kv", spec, ports, GRAPH)


def grown(past: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """What a concatenating graph returns: new entries numbered by their position."""
    start = past.shape[2]
    new = np.arange(start, start + n, dtype=np.float32).reshape(1, 1, n, 1) + np.zeros((1, 2, n, 3), np.float32)
    return {"q.0.key": np.concatenate([past, new], axis=2)}


def positions(array: np.ndarray) -> list[float]:
    return array[0, 0, :, 0].tolist()


def test_append_starts_empty_grows_and_forgets() -> None:
    kv = group("append")
    assert kv.feeds(3)[PAST.name].shape == (1, 2, 0, 3)
    for n in (3, 1):
        kv.commit(grown(kv.feeds(n)[PAST.name], n), n)
    assert positions(kv.feeds(1)[PAST.name]) == [0, 1, 2, 3]
    kv.rewind(2)
    assert positions(kv.feeds(1)[PAST.name]) == [0, 1]
    assert kv.length == 2
    kv.reset()
    assert kv.feeds(1)[PAST.name].shape[2] == 0


def test_fields_are_those_of_the_coming_run() -> None:
    kv = group("append", capacity=9)
    kv.commit(grown(kv.feeds(3)[PAST.name], 3), 3)
    scalar = Port("x", "i64", ())
    assert {name: int(kv.field(name, 2, scalar)) for name in ("len", "total", "last", "capacity")} == {
        "len": 3,
        "total": 5,
        "last": 4,
        "capacity": 9,
    }
    assert kv.field("positions", 2, I64).tolist() == [[3, 4]]
    assert kv.field("mask", 2, I64).tolist() == [[1, 1, 1, 1, 1]]
    last = kv.field("last", 2, I32)
    assert (last.dtype, last.tolist()) == (np.int32, [4])
    assert kv.field("positions", 2, I32).tolist() == [3, 4]


def test_shared_buffer_grows_within_the_capacity_and_keeps_its_content() -> None:
    kv = group("shared", capacity=600)
    assert kv.feeds(10)[PAST.name].shape[2] == 256
    kv.into()["q.0.key"][0, 0, :10, 0] = np.arange(10)
    kv.commit({}, 10)
    assert kv.feeds(250)[PAST.name].shape[2] == 512
    assert positions(kv.feeds(1)[PAST.name])[:10] == list(range(10))
    kv.commit({}, 250)
    assert kv.feeds(340)[PAST.name].shape[2] == 600
    assert kv.into()["q.0.key"] is kv.feeds(1)[PAST.name]
    kv.rewind(5)
    assert int(kv.field("len", 1, Port("x", "i64", ()))) == 5


def test_scatter_buffer_has_the_capacity_and_a_mask_over_it() -> None:
    kv = group("scatter", capacity=5)
    assert kv.feeds(2)[PAST.name].shape == (1, 2, 5, 3)
    kv.commit({}, 2)
    assert kv.field("mask", 1, I64).tolist() == [[1, 1, 1, 0, 0]]
    kv.into()["q.0.key"][:] = 7
    kv.reset()
    assert not kv.feeds(1)[PAST.name].any()


def test_ring_takes_what_leaves_every_token_its_window() -> None:
    kv = group("ring", window=4, capacity=6)
    assert kv.most == 3
    assert kv.capacity is None
    for n in (3, 3):
        kv.commit({}, n)
    assert kv.field("mask", 1, I64).tolist() == [[1] * 6]
    assert int(kv.field("capacity", 1, Port("x", "i64", ()))) == 6
    kv.commit({}, 3)  # 9 positions, of which 3..8 are still there
    kv.rewind(6)  # position 6 reads 3..5; slots 1 and 2 hold positions 7 and 8, which are no more
    assert kv.field("mask", 1, I64).tolist() == [[1, 0, 0, 1, 1, 1]]
    with pytest.raises(UsageError, match="cannot be rewound"):
        kv.rewind(2)


def test_ring_may_be_rewound_to_any_place_before_it_is_full() -> None:
    kv = group("ring", window=4)
    for _ in range(4):
        kv.commit({}, 1)
    kv.rewind(1)
    assert kv.length == 1


def test_what_cannot_be_rewound_is_left_as_it_is() -> None:
    ring = group("ring", window=2)
    for _ in range(6):
        ring.commit({}, 1)
    assert not ring.can_rewind(1)
    with pytest.raises(UsageError, match="cannot be rewound"):
        ring.rewind(1)
    assert ring.length == 6


def test_a_static_token_axis_bounds_a_run() -> None:
    ports = Ports({**PORTS.inputs, "ids": Port("ids", "i64", (1, 1))}, PORTS.outputs)
    assert group("append", ports).most == 1
    assert group("append").most is None


def test_replace_starts_with_zeros_and_takes_what_comes() -> None:
    past = Port("p.0.conv", "f16", ("batch", 4, 2))
    ports = Ports({"ids": IDS, past.name: past}, {"q.0.conv": Port("q.0.conv", "f16", ("batch", 4, 2))})
    state = group("replace", ports)
    assert state.feeds(1)[past.name].dtype == np.float16
    assert state.feeds(1)[past.name].shape == (1, 4, 2)
    state.commit({"q.0.conv": np.ones((1, 4, 2), np.float16)}, 1)
    assert state.feeds(1)[past.name].all()
    with pytest.raises(UsageError, match=r"state 'kv' .replace. cannot be rewound"):
        state.rewind(1)
    state.rewind(0)
    assert not state.feeds(1)[past.name].any()


def test_once_is_filled_by_the_first_run_only() -> None:
    cross = group("once")
    assert cross.keep == ("q.0.key",)
    cross.commit(grown(cross.feeds(1)[PAST.name], 4), 1)
    assert cross.keep == ()
    cross.commit({}, 1)
    assert positions(cross.feeds(1)[PAST.name]) == [0, 1, 2, 3]
    cross.reset()
    assert cross.keep == ("q.0.key",)


def test_read_shows_what_its_owner_holds() -> None:
    owner = group("append")
    inputs = {"k.0.key": Port("k.0.key", "f32", PAST.dims)}
    spec = State(graph="draft", ports={"k.{n}.{h}": "p.{n}.{h}"}, update="read", of="kv")
    reader = DISCIPLINES["read"]("borrowed", spec, Ports(inputs, {}), GRAPH)
    assert isinstance(reader, Read)
    reader.owner = owner
    owner.commit(grown(owner.feeds(2)[PAST.name], 2), 2)
    assert positions(reader.feeds(1)["k.0.key"]) == [0, 1]
    assert reader.keep == ()
    assert int(reader.field("len", 1, Port("x", "i64", ()))) == 2
