# SPDX-License-Identifier: Apache-2.0
"""Text in, ids out, and back: whole and streamed. Normative text: spec/ops/text.encode.md and text.decode.md.

Whatever is streamed joins to what decoding the whole gives, after every token and for every kind of tokenizer.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer

from genai_bundle.errors import GenaiError, UsageError

from .chat import Message, render_chat
from .replies import Reply, ReplyFormat

__all__ = ["StopScanner", "TextCodec", "TextStream", "first_stop", "render_chat"]

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TextCodec:
    """A bundle's `text` section at work: tokenizer, chat template, ending ids, special tokens."""

    def __init__(
        self,
        tokenizer_json: bytes,
        template: str | None = None,
        eos: Iterable[int] = (),
        special: Mapping[str, str] | None = None,
        reply: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises GenaiError where the tokenizer cannot be read."""
        try:
            self.tokenizer = Tokenizer.from_buffer(tokenizer_json)
            description = json.loads(tokenizer_json)
        except Exception as error:  # the library raises a bare Exception
            hint = "It has to be a tokenizer.json of the `tokenizers` library"
            raise GenaiError(f"cannot read the tokenizer: {error}", where="text.tokenizer", hint=hint) from error
        # Both would silently change a prompt: one cuts it, the other fills it up.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.template = template
        self.eos = tuple(eos)
        self.special = dict(special or {})
        self.form = ReplyFormat.declared(reply or {})
        self._skipped = frozenset(t.content for t in self.tokenizer.get_added_tokens_decoder().values() if t.special)
        self.decoder: Mapping[str, Any] | None = description.get("decoder")
        self.kept: dict[str, Any] = {}  # what others work out about this tokenizer, once
        self._pieces = _pieces_for(self.decoder)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """The ids of `text`, with the tokenizer's own special tokens (`<s>`, `[CLS]`) unless told not to."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not valid Unicode: half a surrogate pair at {error.start}") from error
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens. Ids that the vocabulary lacks give nothing."""
        try:
            text: str = self.tokenizer.decode([_fitting(id_) for id_ in ids], skip_special_tokens=True)
        except BaseException as error:
            # A decoder that the library did not foresee makes it panic, which comes as no Exception.
            if isinstance(error, GenaiError) or type(error).__name__ != "PanicException":
                raise
            raise GenaiError(f"the tokenizer failed to decode: {error}", where="text.tokenizer") from error
        return text

    def cut(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of `ids`, cut before the first stop string."""
        text = self.decode(ids)
        end = first_stop(text, stop)
        return text if end < 0 else text[:end]

    def decode_keeping(self, ids: Sequence[int], names: Collection[str]) -> str:
        """The text of `ids`, with those special tokens that `names` holds: what tells the parts of an answer apart."""
        kept = self.special_ids(names)
        text, run = "", list[int]()
        for id_ in ids:
            if id_ in kept:
                text, run = text + self.decode(run) + kept[id_], []
            else:
                run.append(id_)
        return text + self.decode(run)

    def reply(self, ids: Sequence[int], text: str, stop: Sequence[str] = ()) -> Reply:
        """The parts of an answer: its ids, and their text up to the first stop string."""
        if self.special_ids(self.form.delimiters):
            text = self.decode_keeping(ids, self.form.delimiters)
            end = first_stop(text, stop)
            text = text if end < 0 else text[:end]
        return self.form.parse(text)

    def stream(self, stop: Sequence[str] = (), keep: Collection[str] = ()) -> TextStream:
        """A new stream that turns ids into pieces of text, one at a time."""
        return TextStream(self, stop, keep)

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The ids of a conversation: the template writes the special tokens, so encoding adds none."""
        if self.template is None:
            raise UsageError("this bundle has no chat template", hint="Give it a plain prompt instead of messages")
        text = render_chat(
            self.template, messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **self.special
        )
        return self.encode(text, add_special=False)

    def token(self, id_: int) -> str | None:
        """The token behind an id as decoding sees it: None for special ones and for ids that the vocabulary lacks."""
        token: str | None = self.tokenizer.id_to_token(_fitting(id_))
        return None if token in self._skipped else token

    def special_ids(self, names: Collection[str]) -> dict[int, str]:
        """Those of `names` that decoding leaves out, by id."""
        ids = ((self.tokenizer.token_to_id(name), name) for name in names if self.is_special(name))
        return {id_: name for id_, name in ids if id_ is not None}

    def is_special(self, token: str) -> bool:
        """Whether decoding leaves this token out."""
        return token in self._skipped

    def pieces(self) -> Pieces:
        """A fresh incremental decoder of the kind that this tokenizer needs."""
        return self._pieces(self)


def _fitting(id_: int) -> int:
    if not 0 <= id_ < 1 << 32:
        raise UsageError(f"{id_} is no token id", hint="Ids are integers of 0 or more")
    return int(id_)


class Pieces(Protocol):
    """Incremental decoding, without stop strings."""

    def push(self, id_: int) -> str:
        """The text that is certain now."""

    def rest(self) -> str:
        """What decoding everything so far gives beyond all that `push` returned. Changes nothing."""


class BytePieces:
    """Byte-level tokens are bytes in disguise: what is certain ends with the last whole character."""

    def __init__(self, codec: TextCodec) -> None:
        self._token = codec.token
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id_: int) -> str:
        return self._utf8.decode(token_bytes(self._token(id_) or ""))

    def rest(self) -> str:
        waiting, _ = self._utf8.getstate()
        return waiting.decode("utf-8", "replace")


class _WindowPieces:
    """Decodes a window: a little that is out already, for context, and what is new. The difference is the piece.

    Context is needed as the first token of a sequence is decoded otherwise (no leading space, no joining). One token
    with text of its own is enough. Consecutive byte tokens wait for the token after them: they are decoded together,
    as characters if the whole run is valid UTF-8, otherwise as one U+FFFD each.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._context: list[int] = []
        self._known = ""  # the text of the context
        self._waiting: list[int] = []

    def push(self, id_: int) -> str:
        token = self._codec.token(id_)
        if token is None:
            return ""
        self._waiting.append(id_)
        if BYTE_TOKEN.fullmatch(token):
            return ""
        window = self._context + self._waiting
        text = self._codec.decode(window)
        piece = text[len(self._known) :]
        alone = self._codec.decode([id_])
        self._context, self._known = ([id_], alone) if alone else (window, text)
        self._waiting = []
        return piece

    def rest(self) -> str:
        return self._codec.decode(self._context + self._waiting)[len(self._known) :] if self._waiting else ""


class WholePieces:
    """For decoders that nothing is known about: whatever they do, only the end of the stream makes it certain."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._ids: list[int] = []

    def push(self, id_: int) -> str:
        self._ids.append(id_)
        return ""

    def rest(self) -> str:
        return self._codec.decode(self._ids)


def token_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; a token with any other character stands for itself."""
    try:
        return bytes(map(_BYTES.__getitem__, token))
    except KeyError:
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, every other byte for a character from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()


def _pieces_for(decoder: Mapping[str, Any] | None) -> Callable[[TextCodec], Pieces]:
    """Which incremental decoder is exact for a tokenizer.json's `decoder`."""
    parts = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return BytePieces
    if not kinds or kinds in (["WordPiece"], ["Metaspace"], ["BPEDecoder"], ["CTC"]):
        return _WindowPieces
    # Then these, each token by itself; and once tokens are fused, nothing but stripping at the text's beginning.
    fuse = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    before, after = parts[:fuse], parts[fuse + 1 :]
    local = all(part["type"] in ("Replace", "ByteFallback", "Metaspace", "Strip") for part in before)
    leading = all(part["type"] == "Strip" and part.get("stop") == 0 for part in after)
    return _WindowPieces if local and leading else WholePieces


def first_stop(text: str, stop: Sequence[str]) -> int:
    """Where the first of the stop strings begins in `text`, -1 if none is there."""
    found = [at for at in (text.find(one) for one in stop) if at >= 0]
    return min(found, default=-1)


class StopScanner:
    """Passes text through up to the first stop string; holds back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The part of the text so far that is certain to be before any stop string."""
        if self.stopped or not self.stop:
            return "" if self.stopped else piece
        text = self.held + piece
        cut = first_stop(text, self.stop)
        if cut >= 0:
            self.stopped = True
        else:
            cut = len(text) - self._beginning(text)
        self.held = "" if self.stopped else text[cut:]
        return text[:cut]

    def _beginning(self, text: str) -> int:
        """The length of the longest end of `text` that a stop string begins with."""
        longest = min(max(map(len, self.stop)) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if any(one.startswith(text[-n:]) for one in self.stop)), 0)

    def flush(self) -> str:
        held, self.held = self.held, ""
        return held


class TextStream:
    """Ids in, pieces of text out. All pieces and `flush()` together are `decode(all ids)`, cut before a stop string.

    keep: special tokens that stand in the text, as with `decode_keeping`.
    """

    def __init__(self, codec: TextCodec, stop: Sequence[str] = (), keep: Collection[str] = ()) -> None:
        self._codec, self._kept = codec, codec.special_ids(keep)
        self._pieces = codec.pieces()
        self._scanner = StopScanner(stop)

    @property
    def stopped(self) -> bool:
        """Whether the text so far holds a stop string; nothing comes out any more."""
        return self._scanner.stopped

    def push(self, id_: int) -> str:
        """The text that is certain after this id; often empty."""
        if self.stopped:
            return ""
        if id_ in self._kept:
            before, self._pieces = self._pieces.rest(), self._codec.pieces()
            return self._scanner.push(before + self._kept[id_])
        text = self._scanner.push(self._pieces.push(id_))
        if self._scanner.stop and not self.stopped:
            # Text that is not certain yet counts for stopping: `stop@1` decodes everything after each token.
            rest = self._pieces.rest()
            if rest and first_stop(self._scanner.held + rest, self._scanner.stop) >= 0:
                text += self._scanner.push(rest)
        return text

    def flush(self) -> str:
        """What was held back. The stream is over then."""
        return "" if self.stopped else self._scanner.push(self._pieces.rest()) + self._scanner.flush()
