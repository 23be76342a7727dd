# SPDX-License-Identifier: Apache-2.0
"""What is loaded once and shared by all requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from genai_bundle.manifest import Manifest, State
from genai_bundle.ports import Ports

from .adapters import Adapters
from .backends.base import Graph
from .placement import Placement
from .prefix_cache import PrefixCache
from .saved_prefixes import SavedPrefixes
from .text import TextCodec
from .trace import Trace


@dataclass(frozen=True, slots=True)
class LoadedGraph:
    """A graph in the variant that was chosen, and its states as that variant keeps them."""

    name: str
    place: Placement
    ports: Ports
    graph: Graph
    states: Mapping[str, State]


@dataclass(frozen=True, slots=True)
class Program:
    """All that requests share. With `literal`, generate is executed as its expansion, without the decode engine.

    `trace` is told of what requests do, `prefixes` keeps what they computed, `saved` what `prefill` did.
    `load_s`: how long loading took.
    `joint`: why sequences cannot run together, for each `generate` that was tried, see rows.py.
    """

    manifest: Manifest
    graphs: Mapping[str, LoadedGraph]
    text: TextCodec | None
    literal: bool = False
    adapters: Adapters = field(default_factory=Adapters)
    trace: Trace | None = None
    prefixes: PrefixCache | None = None
    saved: SavedPrefixes | None = None
    load_s: float = 0.0
    joint: dict[str, str | None] = field(default_factory=dict)
