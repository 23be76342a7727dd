# SPDX-License-Identifier: Apache-2.0
"""Where tensors lie in shards: rules B3 and B4 of spec/container.md."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from genai_bundle.builder import shards
from genai_bundle.builder.shards import Packer


def constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def test_places_of_small_and_large_tensors() -> None:
    """B4: 1 MiB and more at multiples of 65536, others of 64."""
    packer = Packer("g")
    small, large, last = b"a" * 1030, b"b" * (1 << 20), b"c" * 2000
    places = [packer.place(len(data), constant(data)) for data in (small, large, last)]
    assert [place.offset for place in places] == [0, 65536, 65536 + (1 << 20)]
    assert {place.member for place in places} == {"weights/g-00.bin"}
    (shard,) = packer.shards().values()
    assert shard.size == 65536 + (1 << 20) + 2000
    assert [(offset, read()) for offset, read in shard.segments] == list(
        zip([place.offset for place in places], (small, large, last), strict=True)
    )


def test_equal_tensors_share_their_place() -> None:
    packer = Packer("g")
    first, other, again = (packer.place(1024, constant(letter * 1024)) for letter in (b"a", b"b", b"a"))
    assert first == again != other
    assert packer.shards()["weights/g-00.bin"].size == 2048


def test_a_full_shard_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """B3: a shard ends before its limit, and only a tensor that is longer alone exceeds it."""
    monkeypatch.setattr(shards, "MAX_SHARD", 4096)
    packer = Packer("g")
    sizes = [3000, 2000, 5000, 1024]
    places = [packer.place(size, constant(bytes([index]) * size)) for index, size in enumerate(sizes)]
    assert [place.member for place in places] == [f"weights/g-{index:02}.bin" for index in range(4)]
    assert {place.offset for place in places} == {0}
    assert [shard.size for shard in packer.shards().values()] == sizes
