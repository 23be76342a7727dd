# SPDX-License-Identifier: Apache-2.0
"""The manifest as frozen records: what `manifest.parse_manifest` returns and everything else reads.

The records hold what the document says and nothing derived. Their shape is checked by the parser, their sense by
`check.check_manifest`; code that uses them may rely on both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Json: TypeAlias = Any
"""A parsed JSON value whose type depends on the document: a literal, a default, an expected result."""

Place: TypeAlias = Literal["model", "host"]
Update: TypeAlias = Literal["append", "shared", "scatter", "ring", "replace", "once", "read"]
Scope: TypeAlias = Literal["run", "session"]
Dim: TypeAlias = int | str
"""A static length, a symbol (`"N"`), or a growing symbol (`"N*"`)."""

MIMETYPE_MEMBER = "mimetype"
MANIFEST_MEMBER = "manifest.json"
SIGNATURE_MEMBER = "model.sig"
UNLISTED = (MIMETYPE_MEMBER, MANIFEST_MEMBER, SIGNATURE_MEMBER)
"""Members that the manifest never lists: the fixed one, itself, and the statement that signs it."""
WEIGHTS_FOLDER = "weights/"
DOCS_FOLDER = "docs/"
"""Members below it are for people: licences, model cards, notices."""

CHUNK_SIZE = 4 * 1024 * 1024
"""Bytes that one entry of `FileEntry.chunks` covers; the last chunk of a member may be shorter."""

ADAPTER = "adapter"
"""What a request and a golden vector say before an adapter's name."""

STATE_FIELDS = ("len", "total", "mask", "positions", "last", "capacity")
"""What `state.field` may name; the meaning of each stands in the specification's page on state."""

OPTION_TYPES: Mapping[str, str] = {
    "max_tokens": "i64",
    "temperature": "f32",
    "top_k": "i64",
    "top_p": "f32",
    "min_p": "f32",
    "typical_p": "f32",
    "repetition_penalty": "f32",
    "frequency_penalty": "f32",
    "presence_penalty": "f32",
    "no_repeat_ngram_size": "i64",
    "min_tokens": "i64",
    "seed": "i64",
    "stop": "strings",
}
"""The request's options with the type of the value that a step reads under that name."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One member. `sha256` is 64 lower-case hex digits; `chunks` has one digest for each 4 MiB of a weight shard."""

    size: int
    sha256: str
    chunks: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """The same computation in a backend's own form. `when` has `backend` and may have `device`."""

    name: str
    when: Mapping[str, str]
    file: str
    state: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """A graph by its member; `place: host` wants the exact CPU engine."""

    file: str
    place: Place = "model"
    variants: tuple[Variant, ...] = ()


@dataclass(frozen=True, slots=True)
class Adapter:
    """Values for input ports of graphs, which a request chooses by name. `graphs` {graph: member with the tensors}."""

    graphs: Mapping[str, str]
    description: str | None = None


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array in a shard: `dims` elements of `type`, little-endian and row by row, from the byte `offset` on."""

    file: str
    offset: int
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prefix:
    """A fixed beginning of prompts, and what it left in the states: `states` {state: {past port: array}}.

    of: what `ids` are the beginning of: `system` and perhaps `tools`, or `prompt`. computed: how, as the document has
    it.
    """

    ids: tuple[int, ...]
    of: Mapping[str, Json]
    states: Mapping[str, Mapping[str, StoredArray]]
    computed: Mapping[str, Json]
    adapter: str | None = None

    @property
    def files(self) -> frozenset[str]:
        """The members that hold its arrays."""
        return frozenset(array.file for ports in self.states.values() for array in ports.values())


@dataclass(frozen=True, slots=True)
class Input:
    """What a caller gives. `dims` is None for a scalar, a text, bytes and messages; `rate` (Hz) belongs to audio."""

    type: str
    dims: tuple[Dim, ...] | None = None
    rate: int | None = None
    default: Json = None
    has_default: bool = False
    optional: bool = False
    description: str | None = None

    @property
    def required(self) -> bool:
        """The caller must give it."""
        return not self.optional and not self.has_default


@dataclass(frozen=True, slots=True)
class Output:
    """What a caller gets. A dim that ends in `*` grows with every emission: the output is a stream."""

    type: str
    dims: tuple[Dim, ...] | None = None
    rate: int | None = None
    description: str | None = None

    @property
    def stream_axis(self) -> int | None:
        """The axis that grows, None where the output is set once."""
        stars = [axis for axis, dim in enumerate(self.dims or ()) if isinstance(dim, str) and dim.endswith("*")]
        return stars[0] if stars else None


@dataclass(frozen=True, slots=True)
class State:
    """A group of past/present ports that a graph keeps between its runs."""

    graph: str
    ports: Mapping[str, str]
    axis: int = 2
    update: Update = "append"
    tokens: str | None = None
    capacity: int | None = None
    window: int | None = None
    scope: Scope = "run"
    of: str | None = None

    def override(self, changes: Mapping[str, Json]) -> State:
        """This state as a variant sees it. `changes` are the keys of `Variant.state[name]`, already checked."""
        known = {field.name for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{key: value for key, value in changes.items() if key in known})


@dataclass(frozen=True, slots=True)
class Run:
    """Run a graph or a host op. `inputs` {port: value name or `state.field`}, `outputs` {port: new value name}."""

    target: str
    inputs: Mapping[str, str]
    literals: Mapping[str, Json]
    outputs: Mapping[str, str]
    where: str

    @property
    def is_op(self) -> bool:
        """The target is a host op (`text.encode@1`), not a graph."""
        return "@" in self.target


@dataclass(frozen=True, slots=True)
class Loop:
    """Repeat `do`. `carry` is {name: (initial value, next value)}; the short form `x: next` reads as `(x, next)`."""

    carry: Mapping[str, tuple[str, str]]
    max: int | str | None
    index: str | None
    while_: str | None
    until: str | None
    reset: tuple[str, ...]
    do: tuple[Step, ...]
    where: str


@dataclass(frozen=True, slots=True)
class If:
    """Take one branch. `cond` is a bool value, or an optional input (true when it was given)."""

    cond: str
    then: tuple[Step, ...]
    orelse: tuple[Step, ...]
    out: tuple[str, ...]
    where: str


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand values to the caller: `values` {output: value}."""

    values: Mapping[str, str]
    where: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A cheaper body that guesses the tokens of a `generate`. It reads the carried ids under the same name.

    carry: {name: (value of the body, value of the draft)}, which the draft reads of the position before each id.
    """

    do: tuple[Run, ...]
    logits: str
    where: str
    carry: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Generate:
    """A token loop whose tail (sample, stop, emit) the runner owns. `emit` {output: `token` or `text.decode@1`}."""

    carry: Mapping[str, tuple[str, str]]
    do: tuple[Step, ...]
    logits: str
    emit: Mapping[str, str]
    where: str
    draft: Draft | None = None


Step: TypeAlias = Run | Loop | If | Emit | Generate


@dataclass(frozen=True, slots=True)
class Text:
    """Member of the tokenizer, member of the chat template, ids that end a text, strings that the template reads.

    reply: what tells the parts of an answer apart, as the document has it; empty where an answer is content only.
    """

    tokenizer: str
    template: str | None = None
    eos: tuple[int, ...] = ()
    special: Mapping[str, str] = field(default_factory=dict)
    reply: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """`compare: {abs, rel}`: |got - expected| <= abs + rel * |expected|, elementwise."""

    abs: float = 0.0
    rel: float = 0.0


@dataclass(frozen=True, slots=True)
class Test:
    """A golden vector. A value is JSON, or `{"file": member}` where it is large.

    fast: how far off the results of fast arithmetic may be, None where that is held to `compare` too.
    """

    __test__ = False  # pytest would take it for a test class

    name: str | None
    inputs: Mapping[str, Json]
    outputs: Mapping[str, Json]
    compare: Literal["exact", "tokens"] | Tolerance = "exact"
    fast: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json`. `raw` is its canonical form, byte for byte; the digest of that is the bundle's identity."""

    format: str
    name: str
    files: Mapping[str, FileEntry]
    graphs: Mapping[str, GraphEntry]
    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    steps: tuple[Step, ...]
    state: Mapping[str, State] = field(default_factory=dict)
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    prefixes: Mapping[str, Prefix] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    version: str | None = None
    task: str | None = None
    description: str | None = None
    license: str | None = None
    authors: tuple[str, ...] = ()
    source: Mapping[str, Json] = field(default_factory=dict)
    text: Text | None = None
    generation: Mapping[str, Json] = field(default_factory=dict)
    tests: tuple[Test, ...] = ()
    raw: bytes = b""
