# SPDX-License-Identifier: Apache-2.0
"""Vectors of drafts (rules M27, P31)."""

from __future__ import annotations

from collections.abc import Iterator

from .manifest_faults import GENERATE, fault
from .manifests import CHAT, CHAT_MEMBERS, Case, Document, change

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


def valid() -> Iterator[Case]:
    """A document that every reader accepts."""
    yield Case("draft", "A draft beside the body, with a cache of its own", DRAFT, MEMBERS)


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
