# SPDX-License-Identifier: Apache-2.0
"""Compare a decoder graph with the reference: prefill, cached steps, pieces, far positions, a padded batch of two.

Knows nothing of an engine: `run` feeds a graph and returns its outputs by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genai_bundle.errors import ProofError

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array], Sequence[str], Mapping[str, Array]], Mapping[str, Array]]
"""(feeds, names of the outputs, outputs to write into the given arrays) -> the other outputs."""

TOLERANCE = 1e-3
"""Largest allowed difference of a logit or cache entry, absolute.

Sums of some thousand float32 products in another order differ by about 1e-5 per layer and add up over layers; real
exporter faults (a wrong mask, window or scale) measured 0.1 and more. 1e-3 lies far from both.
"""


CHUNK = 512
"""Tokens that one run takes of a text whose logits are asked of its end only: attention over all of a text that is
longer than a window of 4,096 would take gigabytes."""


class Golden(Protocol):
    """What `reference.Golden` offers. A protocol, so that this module needs no torch."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def text(self) -> tuple[int, ...]: ...
    @property
    def offset(self) -> int: ...
    @property
    def known(self) -> int: ...
    @property
    def logits(self) -> NDArray[np.float32]: ...
    @property
    def keys(self) -> tuple[NDArray[np.float32], ...]: ...
    @property
    def values(self) -> tuple[NDArray[np.float32], ...]: ...


@dataclass(frozen=True)
class Cache:
    """A state of the graph: what goes in at `past` and comes out at `present`, float32.

    `dims` are the axes of the port, the batch first; what stands for an axis that the graph leaves open does not
    matter. `axis` is the one that grows with the tokens; None for a state that stays as large as it is.
    """

    past: str
    present: str
    dims: tuple[int, ...]
    axis: int | None = 2


def kv_caches(shapes: Sequence[tuple[int, int]]) -> list[Cache]:
    """The caches of layers with these numbers of heads and head sizes, under the names that exporters give."""
    return [
        Cache(f"past_key_values.{layer}.{half}", f"present.{layer}.{half}", (0, heads, 0, size))
        for layer, (heads, size) in enumerate(shapes)
        for half in ("key", "value")
    ]


@dataclass
class Decoder:
    """A decoder graph with its states, fed as a runner would feed it.

    Args:
        run: the graph.
        ports: names of its inputs.
        caches: its states.
        capacity: length of the shared buffers; None for caches that grow.
        single: it takes one token a run.
    """

    run: Run
    ports: Collection[str]
    caches: Sequence[Cache]
    capacity: int | None
    single: bool = False
    past: dict[str, Array] = field(default_factory=dict)
    also: Sequence[str] = ()
    """Further outputs, which `found` has after a run."""
    found: dict[str, Array] = field(default_factory=dict)
    beside: Mapping[str, Array] = field(default_factory=dict)
    """Further inputs of the coming run."""

    @property
    def counts_pads(self) -> bool:
        """Whether the graph has states that every token changes, and no mask that would keep a pad out of them."""
        masked = "attention_mask" in self.ports and not self.single  # one token a run is never taken for a pad
        return not masked and any(cache.axis is None for cache in self.caches)

    def reset(self, batch: int) -> None:
        """Forget everything; the next rows are `batch` fresh ones."""
        self.past = {}
        for cache in self.caches:
            dims = [batch, *cache.dims[1:]]
            if cache.axis is not None:
                dims[cache.axis] = self.capacity or 0
            self.past[cache.past] = np.zeros(dims, np.float32)

    def feed(self, ids: Array, positions: Array, mask: Array, lengths: Sequence[int], keep: int) -> Array:
        """Run tokens i64[batch,n], in n runs where the graph takes them one by one.

        `mask` i64[batch,total] marks real tokens, `lengths` counts them per row afterwards.

        Returns:
            logits f32[batch,keep,vocabulary].
        """
        columns = ids.shape[1]
        if self.single and columns > 1:
            seen, ends = mask.shape[1] - columns, range(1, columns + 1)
            rows = [
                self.feed(ids[:, end - 1 : end], positions[:, end - 1 : end], mask[:, : seen + end], lengths, 1)
                for end in ends
            ]
            return np.concatenate(rows, axis=1)[:, -keep:]
        offered: dict[str, Array] = {
            "input_ids": ids.astype(np.int64),
            "position_ids": positions.astype(np.int64),
            "attention_mask": mask.astype(np.int64),
            "num_logits": np.array(keep, np.int64),
            "seqlens_k": np.array(lengths, np.int32) - 1,
            "total_sequence_length": np.array(mask.shape[1], np.int32),
        }
        feeds = {name: value for name, value in offered.items() if name in self.ports} | self.past
        feeds |= self.beside
        shared = [cache for cache in self.caches if self.capacity and cache.axis is not None]
        into = {cache.present: self.past[cache.past] for cache in shared}
        outputs = self.run(feeds, ["logits", *(cache.present for cache in self.caches), *self.also], into)
        self.found = {name: np.asarray(outputs[name]) for name in self.also}
        for cache in self.caches:
            if cache.present not in into:
                self.past[cache.past] = np.asarray(outputs[cache.present])
        return np.asarray(outputs["logits"])

    def step(self, ids: Sequence[int], held: int, keep: int, offset: int = 0) -> Array:
        """One row without padding: `ids` after `held` tokens, counting positions from `offset`.

        Returns:
            f32[keep,vocabulary].
        """
        total = held + len(ids)
        positions = np.arange(held, total)[None] + offset
        rows = self.feed(np.array([ids]), positions, np.ones((1, total)), [total], keep)
        return np.asarray(rows[0])


def check_decoder(decoder: Decoder, goldens: Sequence[Golden], turn: int | None = None) -> float:
    """The largest difference over all checks.

    Args:
        turn: the length beyond which the model rotates all that it computes in another way, keys that it holds already
            excepted. A longer text is another one when it is read piece by piece than when it is read at once, in the
            model as in the graph; so pieces and batches are compared up to it.

    Raises:
        ProofError: a difference beyond TOLERANCE (or not a number), with the check, the position, and the first layer
        that differs.
    """
    worst = 0.0
    for golden in goldens:
        worst = max(worst, _check_steps(decoder, golden))
        if golden.known == len(golden.ids):
            worst = max(worst, _check_pieces(decoder, golden, turn))
    pair = [golden for golden in goldens if not golden.offset and golden.known == len(golden.ids)]
    pair = [golden for golden in pair if turn is None or len(golden.ids) < turn]
    if len(pair) > 1:
        ordered = sorted(pair, key=lambda golden: len(golden.ids))
        worst = max(worst, _check_batch(decoder, ordered[0], ordered[-1]))
    return worst


def _check_steps(decoder: Decoder, golden: Golden) -> float:
    """The prompt in one run, then one token at a time, as decoding goes."""
    decoder.reset(1)
    count, begin = len(golden.ids), len(golden.ids) - golden.known
    for start in range(0, begin, CHUNK):
        decoder.step(golden.ids[start : min(start + CHUNK, begin)], start, 1, golden.offset)
    rows = [decoder.step(golden.ids[begin:], begin, golden.known, golden.offset)]
    for held, token in enumerate(golden.tokens[:-1], start=count):
        rows.append(decoder.step([token], held, 1, golden.offset))
    name = "prefill and cached steps"
    if begin:
        name += f" after {begin} tokens"
    if golden.offset:
        name += f" at position {golden.offset}"
    return _compare(name, np.concatenate(rows), golden.logits, decoder, golden)


def _check_pieces(decoder: Decoder, golden: Golden, turn: int | None) -> float:
    """All tokens in three runs: a prompt of one token, and several on a filled cache, as checking a draft or continuing
    a session does."""
    text = golden.text
    if turn is not None:
        if golden.offset + len(golden.ids) > turn:
            return 0.0
        text = text[: turn - golden.offset]
    decoder.reset(1)
    cuts = sorted({0, 1, max(1, len(text) // 2), len(text)})
    rows = [decoder.step(text[begin:end], begin, end - begin, golden.offset) for begin, end in pairwise(cuts)]
    return _compare("prefill in pieces", np.concatenate(rows), golden.logits[: len(text)], decoder, golden)


def _check_batch(decoder: Decoder, short: Golden, long: Golden) -> float:
    """Two rows of different length, padded, then one more token for each: an ignored mask or length shows here.

    A graph with a mask takes the pad tokens first; one with lengths takes them last (left-padded rows were off by up to
    8.8). One that knows of no pads gets two rows of equal length, the longer text cut.
    """
    decoder.reset(2)
    left = "attention_mask" in decoder.ports
    rows = [list(short.ids), list(long.ids)]
    if decoder.counts_pads:
        rows[1] = rows[1][: len(short.ids)]
    width = max(map(len, rows))
    ids, mask = np.zeros((2, width), np.int64), np.zeros((2, width), np.int64)
    for index, row in enumerate(rows):
        part = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, part], mask[index, part] = row, 1
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    logits = decoder.feed(ids, positions, mask, [len(row) for row in rows], width)
    lengths = np.array([len(row) + 1 for row in rows])
    token = np.array([[golden.text[len(row)]] for row, golden in zip(rows, (short, long), strict=True)])
    if left:
        after = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
    else:
        after = (np.arange(width + 1)[None] < lengths[:, None]).astype(np.int64)
    step = decoder.feed(token, lengths[:, None] - 1, after, lengths.tolist(), 1)
    worst = 0.0
    for index, golden in enumerate((short, long)):
        got = np.concatenate([logits[index][mask[index] == 1], step[index]])
        worst = max(worst, _compare(f"row {index} of a padded batch", got, golden.logits[: len(got)]))
    return worst


def _compare(
    check: str, got: Array, expected: Array, decoder: Decoder | None = None, golden: Golden | None = None
) -> float:
    """The largest difference of two equally shaped arrays of logits."""
    if got.shape != expected.shape:
        raise ProofError(f"{check}: logits have the shape {got.shape}, expected {expected.shape}", where="logits")
    worst, place = difference(got, expected)
    if not worst <= TOLERANCE:
        layer = _first_layer(decoder, golden) if decoder is not None and golden is not None else ""
        raise ProofError(
            f"{check}: differs from the model by {worst:.3g} at position {place[0]}, allowed are {TOLERANCE:g}{layer}",
            where="logits", hint="The graph is wrong for this model; nothing was written",
        )  # fmt: skip
    return worst


def _first_layer(decoder: Decoder, golden: Golden) -> str:
    """Where the difference begins: the first cache that differs. It shows what the layers before it did."""
    total = len(golden.logits)
    for layer, (keys, values) in enumerate(zip(golden.keys, golden.values, strict=True)):
        for half, expected in (("key", keys), ("value", values)):
            held = decoder.past.get(f"past_key_values.{layer}.{half}")
            if held is None or held[0, :, :total].shape != expected.shape:
                continue  # the model itself keeps only a window of this layer
            worst, _ = difference(held[0, :, :total], expected)
            if not worst <= TOLERANCE:
                return f"; the first cache that differs is present.{layer}.{half}, by {worst:.3g}"
    return ""


def difference(got: Array, expected: Array) -> tuple[float, tuple[int, ...]]:
    """The largest absolute difference and where it is; NaN counts as infinite."""
    gap = np.abs(got.astype(np.float64) - expected)
    gap[np.isnan(gap)] = np.inf
    place = np.unravel_index(int(gap.argmax()), gap.shape)
    return float(gap[place]), tuple(int(index) for index in place)
