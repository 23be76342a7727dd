# SPDX-License-Identifier: Apache-2.0
"""Vectors of drafts (rules M27, P31, P32)."""

from __future__ import annotations

from collections.abc import Iterator

from .manifest_faults import GENERATE, fault
from .manifests import CHAT, CHAT_MEMBERS, Case, Document, change, graph

RUN = {"run": "draft", "in": {"input_ids": "ids", "attention_mask": "draft_kv.mask"}, "out": {"logits": "logits"}}

DRAFT: Document = change(
    {key: CHAT[key] for key in ("format", "inputs", "outputs", "state", "steps", "text")},
    ("name", "draft"),
    ("graphs", {"decoder": {"file": "decoder.onnx"}, "draft": {"file": "decoder.onnx"}}),
    ("state", "kv", "capacity", ...),
    ("state", "draft_kv", {**CHAT["state"]["kv"], "graph": "draft", "capacity": 8}),
    (*GENERATE, "do", 0, "in", "seqlens", ...),
    (*GENERATE, "draft", {"do": [RUN], "logits": "logits"}),
)
MEMBERS = {path: CHAT_MEMBERS[path] for path in ("decoder.onnx", "tokenizer.json", "chat.jinja")}

BODY = "body (int64[1,S] ids) => (float[1,S,V] logits, float[1,S,2] hidden)"
SAME = (
    "<int64 n = {8}, int64 w = {2}, float[2] r = {0.0, 1.0}> { logits = OneHot(ids, n, r) hidden = OneHot(ids, w, r) }"
)
HEAD = "head (int64[1,S] ids, float[1,S,2] x) => (float[1,S,V] logits, float[1,S,2] y)"
NEXT = "<int64 n = {8}, float[2] r = {0.0, 1.0}> { logits = OneHot(ids, n, r) y = Identity(x) }"
HEADED: Document = {
    "format": "1.0",
    "name": "headed",
    "graphs": {"body": {"file": "body.onnx"}, "head": {"file": "head.onnx"}},
    "inputs": {"ids": {"type": "i64", "dims": [1, "N"]}},
    "outputs": {"tokens": {"type": "i64", "dims": [1, "T*"]}},
    "steps": [
        {
            "generate": {
                "carry": {"ids": "token"},
                "do": [{"run": "body", "in": {"ids": "ids"}, "out": {"logits": "logits", "hidden": "hidden"}}],
                "logits": "logits",
                "emit": {"tokens": "token"},
                "draft": {
                    "carry": {"seen": ["hidden", "mine"]},
                    "do": [{"run": "head", "in": {"ids": "ids", "x": "seen"}, "out": {"logits": "guess", "y": "mine"}}],
                    "logits": "guess",
                },
            }
        }
    ],
}
HEADED_MEMBERS = {"body.onnx": graph(f"{BODY} {SAME}"), "head.onnx": graph(f"{HEAD} {NEXT}")}


def valid() -> Iterator[Case]:
    """Documents that every reader accepts."""
    yield Case("draft", "A draft beside the body, with a cache of its own", DRAFT, MEMBERS)
    yield Case("draft-head", "A draft that reads what the body computed", HEADED, HEADED_MEMBERS)


def faults() -> Iterator[Case]:
    """What a draft may run, read and keep."""
    draft = (*GENERATE, "draft")
    yield fault("M7", "draft-logits", "A draft without logits", "draft", (*draft, "logits", ...))
    yield fault("M27", "draft-op", "A draft that draws", "draft", (*draft, "do", 0, "run", "sample@1"))
    yield fault("M27", "draft-emit", "A draft that emits", "draft", (*draft, "do", 0, {"emit": {"tokens": "ids"}}))
    other = {"name": ["ids", "logits"], "ids": "token"}
    yield fault(
        "P1",
        "draft-carried",
        "A draft reads what the body carries",
        "draft",
        (*GENERATE, "carry", other),
        (*draft, "do", 0, "in", "input_ids", "name"),
    )
    yield fault(
        "P1", "draft-undefined", "Logits that the body of a draft does not give", "draft", (*draft, "logits", "x")
    )
    run = {"run": "decoder", "in": {"input_ids": "ids", "attention_mask": "kv.mask"}, "out": {"logits": "logits"}}
    yield fault(
        "P31",
        "draft-shared",
        "A draft shares the cache of the body",
        "draft",
        (*draft, "do", 0, run),
        ("graphs", "draft", ...),
        ("state", "draft_kv", ...),
    )
    reader = {"graph": "decoder", "ports": {"past.{n}.{h}": "past.{n}.{h}"}, "update": "read", "of": "draft_kv"}
    yield fault("P31", "draft-read", "The body reads the cache of a draft", "draft", ("state", "kv", reader))
    yield from _heads()


def _heads() -> Iterator[Case]:
    """What a draft may carry."""
    carry = ("steps", 0, "generate", "draft", "carry")

    yield fault(
        "P32",
        "draft-carry-body",
        "A draft carries what the body does not give",
        "draft-head",
        (*carry, "seen", ["hiden", "mine"]),
    )
    yield fault(
        "P32",
        "draft-carry-own",
        "A draft carries what it does not give itself",
        "draft-head",
        (*carry, "seen", ["hidden", "hidden"]),
    )
    yield fault(
        "P2",
        "draft-carry-name",
        "A draft carries under the name of the ids",
        "draft-head",
        (*carry, {"ids": ["hidden", "mine"]}),
    )
    yield fault(
        "M9",
        "draft-carry-one",
        "A draft carries one name where it takes two",
        "draft-head",
        (*carry, "seen", ["hidden"]),
    )
