# SPDX-License-Identifier: Apache-2.0
"""The sections of a manifest as records: files, graphs, adapters, inputs, outputs, state, text, generation, tests.

What an object may hold is said here and in `schema/v1/manifest.schema.json`, and both must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from .document import Node
from .layout import is_weights
from .names import DIGEST, DIM, WORD, is_path
from .paths import find_clash
from .records import (
    CHUNK_SIZE,
    UNLISTED,
    Adapter,
    Dim,
    FileEntry,
    GraphEntry,
    Input,
    Json,
    Output,
    Place,
    Scope,
    State,
    Test,
    Text,
    Tolerance,
    Update,
    Variant,
)
from .steps import port_entries, port_name

ELEMENT_TYPES = ("f32", "f16", "i64", "i32", "u8", "bool")
INPUT_TYPES = ("text", "bytes", "messages", "audio", *ELEMENT_TYPES)
OUTPUT_TYPES = ("text", "bytes", "audio", *ELEMENT_TYPES)
UPDATES: tuple[Update, ...] = ("append", "shared", "scatter", "ring", "replace", "once", "read")
PLACES: tuple[Place, ...] = ("model", "host")
SCOPES: tuple[Scope, ...] = ("run", "session")
COMPARISONS: tuple[Literal["exact", "tokens"], ...] = ("exact", "tokens")
_CHANGEABLE = ("update", "capacity", "window", "axis", "tokens", "ports")


def parse_path(node: Node) -> str:
    if not isinstance(node.value, str) or not is_path(node.value):
        node.fail("a member's path such as weights/decoder-00.bin", "M11")
    return node.value


def parse_files(node: Node) -> dict[str, FileEntry]:
    if not isinstance(node.value, dict):
        node.fail("an object")
    found: dict[str, FileEntry] = {}
    for key, value in node.value.items():
        entry = Node(value, f"files[{key!r}]", node.strict)
        path = parse_path(Node(key, entry.path))
        if path.lower() in UNLISTED:
            entry.refuse("this member is never listed", "M12")
        found[path] = _file(path, entry)
    clash = find_clash(found)
    if clash:
        node.refuse(f"{clash[0]!r} and {clash[1]!r} cannot be unpacked side by side", "M13")
    return found


def _file(path: str, node: Node) -> FileEntry:
    keys = node.object(("size", "sha256"), ("chunks",))
    size = keys["size"].integer()
    if is_weights(path) != ("chunks" in keys):
        node.refuse("`chunks` is missing" if is_weights(path) else "only members under weights/ have `chunks`", "M14")
    chunks = tuple(_digest(chunk) for chunk in keys["chunks"].items()) if "chunks" in keys else None
    if chunks is not None and len(chunks) != -(-size // CHUNK_SIZE):
        keys["chunks"].refuse(f"{len(chunks)} digests for {size} bytes, not one for each 4 MiB begun", "M14")
    return FileEntry(size, _digest(keys["sha256"]), chunks)


def _digest(node: Node) -> str:
    return node.match(DIGEST, "64 lower-case hexadecimal digits", "M15")


def _graph_file(node: Node) -> str:
    path = parse_path(node)
    if "/" in path:
        node.fail("a path without a folder", "M16")
    return path


def parse_graph(node: Node) -> GraphEntry:
    keys = node.object(("file",), ("place", "variants"))
    return GraphEntry(
        file=_graph_file(keys["file"]),
        place=keys["place"].choice(PLACES) if "place" in keys else "model",
        variants=tuple(_variant(item) for item in keys["variants"].items()) if "variants" in keys else (),
    )


def _variant(node: Node) -> Variant:
    keys = node.object(("name", "when", "file"), ("state",))
    name = keys["name"].match(WORD, "a word such as ort-cpu")
    if name in ("auto", "portable"):
        keys["name"].refuse(f"{name!r} is no name for a variant: it chooses among variants", "M26")
    when = keys["when"].object(("backend",), ("device",))
    overrides = keys["state"].entries() if "state" in keys else {}
    return Variant(
        name=name,
        when={key: word.match(WORD, "a word such as onnxruntime") for key, word in when.items()},
        file=_graph_file(keys["file"]),
        state={state: _override(changes) for state, changes in overrides.items()},
    )


def parse_adapter(node: Node) -> Adapter:
    keys = node.object(("graphs",), ("description",))
    return Adapter(
        graphs={graph: _graph_file(file) for graph, file in keys["graphs"].entries(least=1).items()},
        description=keys["description"].string() if "description" in keys else None,
    )


def parse_input(node: Node) -> Input:
    keys = node.object(("type",), ("dims", "rate", "default", "optional", "description"))
    kind = keys["type"].choice(INPUT_TYPES)
    dims = _dims(keys["dims"]) if "dims" in keys else None
    _check_port(node, kind, dims, keys)
    if dims and any(str(dim).endswith("*") for dim in dims):
        keys["dims"].refuse("no dim of an input grows", "M19")
    if "default" in keys and "optional" in keys:
        node.refuse("an input is optional or has a default, not both", "M20")
    return Input(
        type=kind,
        dims=dims,
        rate=keys["rate"].integer(1) if "rate" in keys else None,
        default=keys["default"].value if "default" in keys else None,
        has_default="default" in keys,
        optional=keys["optional"].flag() if "optional" in keys else False,
        description=keys["description"].string() if "description" in keys else None,
    )


def parse_output(node: Node) -> Output:
    keys = node.object(("type",), ("dims", "rate", "description"))
    kind = keys["type"].choice(OUTPUT_TYPES)
    dims = _dims(keys["dims"]) if "dims" in keys else None
    growing = [dim for dim in dims or () if str(dim).endswith("*")]
    if len(growing) > 1:
        keys["dims"].refuse("more than one dim grows", "M19")
    if not (kind == "text" and growing and dims and len(dims) == 1):
        _check_port(node, kind, dims, keys)
    return Output(
        type=kind,
        dims=dims,
        rate=keys["rate"].integer(1) if "rate" in keys else None,
        description=keys["description"].string() if "description" in keys else None,
    )


def _check_port(node: Node, kind: str, dims: tuple[Dim, ...] | None, keys: Mapping[str, Node]) -> None:
    """What inputs and outputs have in common: dims belong to tensors (M17), a rate to audio (M18)."""
    if kind in ("text", "bytes", "messages") and dims is not None:
        keys["dims"].refuse(f"{kind} has no dims", "M17")
    if (kind == "audio") != ("rate" in keys):
        node.refuse(f"{kind} has no rate, only audio does" if "rate" in keys else "audio needs its rate in Hz", "M18")


def _dims(node: Node) -> tuple[Dim, ...]:
    return tuple(
        item.match(DIM, "a name such as N or T*") if isinstance(item.value, str) else item.integer(1)
        for item in node.items(1, 8)
    )


def parse_state(node: Node) -> State:
    optional = ("axis", "update", "tokens", "capacity", "window", "scope", "of")
    keys = node.object(("graph", "ports"), optional)
    more: dict[str, Json] = _state_changes(keys, UPDATES)
    if "scope" in keys:
        more["scope"] = keys["scope"].choice(SCOPES)
    if "of" in keys:
        more["of"] = keys["of"].name()
    return State(graph=keys["graph"].name(), **more)


def _override(node: Node) -> dict[str, Json]:
    """What a variant changes in a state: the keys as they stand, checked."""
    return _state_changes(node.object((), _CHANGEABLE), UPDATES[:-1])


def _state_changes(keys: Mapping[str, Node], updates: Iterable[Update]) -> dict[str, Json]:
    """The keys of a state that a variant may change, as far as they are given."""
    readers: dict[str, Callable[[Node], Json]] = {
        "ports": lambda node: {past: port_name(present) for past, present in port_entries(node, 1).items()},
        "axis": lambda node: node.integer(0, 7),
        "update": lambda node: node.choice(updates),
        "tokens": port_name,
        "capacity": lambda node: node.integer(1),
        "window": lambda node: node.integer(1),
    }
    return {key: read(keys[key]) for key, read in readers.items() if key in keys}


def parse_text(node: Node) -> Text:
    keys = node.object(("tokenizer",), ("template", "eos", "special", "reply"))
    special = keys["special"].entries() if "special" in keys else {}
    return Text(
        tokenizer=parse_path(keys["tokenizer"]),
        template=parse_path(keys["template"]) if "template" in keys else None,
        eos=tuple(token.integer(0, 2**32 - 1) for token in keys["eos"].items()) if "eos" in keys else (),
        special={name: text.string() for name, text in special.items()},
        reply=_reply(keys["reply"]) if "reply" in keys else {},
    )


def _reply(node: Node) -> dict[str, Json]:
    """What tells the parts of an answer apart: delimiters, or channels in their place."""
    readers: dict[str, Callable[[Node], Json]] = {
        "reasoning": lambda node: [text.string(1) for text in node.items(2, 2)],
        "calls": _calls,
        "channels": _channels,
    }
    found = {key: readers[key](value) for key, value in node.object((), readers).items()}
    if "channels" in found and len(found) > 1:
        node.refuse("`channels` tell all parts apart: nothing stands beside them", "M28")
    return found


def _calls(node: Node) -> dict[str, Json]:
    found = {key: text.string(1) for key, text in node.object((), ("open", "close", "arguments")).items()}
    if found and "open" not in found:
        node.refuse("`close` and `arguments` need `open`", "M28")
    return found


def _channels(node: Node) -> dict[str, Json]:
    keys = node.object(("begin", "message", "end"), ("reasoning", "calls"))
    texts = {key: text.string(1) for key, text in keys.items() if key != "end"}
    return {**texts, "end": [text.string(1) for text in keys["end"].items(1)]}


def parse_generation(node: Node) -> dict[str, Json]:
    readers: dict[str, Callable[[Node], Json]] = {
        "max_tokens": lambda node: node.integer(1),
        "temperature": lambda node: node.number(),
        "top_k": lambda node: node.integer(),
        "top_p": lambda node: node.number(0, 1),
        "min_p": lambda node: node.number(0, 1),
        "typical_p": lambda node: node.number(0, 1),
        "repetition_penalty": lambda node: node.number(0, above=True),
        "frequency_penalty": lambda node: node.number(None),
        "presence_penalty": lambda node: node.number(None),
        "no_repeat_ngram_size": lambda node: node.integer(),
        "min_tokens": lambda node: node.integer(),
        "seed": lambda node: node.integer(),
        "stop": lambda node: [text.string(1) for text in node.items()],
    }
    return {key: readers[key](value) for key, value in node.object((), readers).items()}


def parse_test(node: Node) -> Test:
    keys = node.object(("in", "out"), ("name", "compare", "fast"))
    return Test(
        name=keys["name"].string(1) if "name" in keys else None,
        inputs={name: _test_value(value) for name, value in keys["in"].entries().items()},
        outputs={name: _test_value(value) for name, value in keys["out"].entries(least=1).items()},
        compare=_compare(keys["compare"]) if "compare" in keys else "exact",
        fast=keys["fast"].number() if "fast" in keys else None,
    )


def _test_value(node: Node) -> Json:
    """JSON as it stands, or `{"file": member}`."""
    return {"file": parse_path(node.object(("file",))["file"])} if isinstance(node.value, dict) else node.value


def _compare(node: Node) -> Literal["exact", "tokens"] | Tolerance:
    if not isinstance(node.value, dict):
        return node.choice(COMPARISONS)
    return Tolerance(**{key: bound.number() for key, bound in node.object((), ("abs", "rel")).items()})
