# SPDX-License-Identifier: Apache-2.0
"""What each token of a vocabulary adds to a text, in bytes: what a grammar has to know.

Joined, they are what decoding the whole gives. The first token of an answer may add something else than the same token
later on: many decoders drop a space there.
"""

from __future__ import annotations

from dataclasses import dataclass

from genai_bundle.errors import UsageError

from .text import BYTE_TOKEN, BytePieces, TextCodec, WholePieces, token_bytes

_LOOKS_AHEAD = ("CTC", "BPEDecoder")  # what a token adds depends on the token after it


@dataclass(frozen=True)
class Vocabulary:
    """Bytes by id. Ids that add nothing to a text have b"". `special`: the names of ids that decoding leaves out."""

    later: list[bytes]
    first: dict[int, bytes]  # of the ids that add something else at the beginning
    special: dict[int, str]

    @staticmethod
    def of(text: TextCodec) -> Vocabulary:
        """Raises UsageError where tokens of this tokenizer have no bytes of their own."""
        pieces = text.pieces()
        if isinstance(pieces, WholePieces) or (text.decoder or {}).get("type") in _LOOKS_AHEAD:
            hint = "Generate without a grammar, and check the text"
            raise UsageError("a grammar needs a tokenizer whose tokens each have a text of their own", hint=hint)
        size = max(text.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        names = [text.tokenizer.id_to_token(id_) for id_ in range(size)]
        tokens = [text.token(id_) for id_ in range(size)]
        special = {i: name for i, name in enumerate(names) if name is not None and tokens[i] is None}
        if isinstance(pieces, BytePieces):
            return Vocabulary([token_bytes(token or "") for token in tokens], {}, special)
        return Vocabulary(*_decoded(text, tokens), special)


def _decoded(text: TextCodec, tokens: list[str | None]) -> tuple[list[bytes], dict[int, bytes]]:
    """What each token decodes to behind another one, and where that differs, alone."""
    ids = range(len(tokens))
    alone = [one.encode() for one in _batch(text, [[id_] for id_ in ids])]
    for id_, byte in _byte_tokens(text, tokens).items():
        alone[id_] = bytes([byte]) if alone[id_] else b""  # a space that is dropped
    anchor = next((i for i in ids if alone[i] and not BYTE_TOKEN.fullmatch(tokens[i] or "")), None)
    if anchor is None:
        return alone, {}
    known = len(alone[anchor])
    later = [one.encode()[known:] for one in _batch(text, [[anchor, id_] for id_ in ids])]
    for id_, byte in _byte_tokens(text, tokens).items():
        later[id_] = bytes([byte])
    return later, {i: alone[i] for i in ids if alone[i] != later[i]}


def _byte_tokens(text: TextCodec, tokens: list[str | None]) -> dict[int, int]:
    """Ids of `<0x41>` and the like, where the decoder takes them for bytes."""
    found = {i: int(token[3:5], 16) for i, token in enumerate(tokens) if token and BYTE_TOKEN.fullmatch(token)}
    probe = next((i for i, byte in found.items() if 0x21 <= byte < 0x7F), None)
    return found if probe is not None and text.decode([probe]) == chr(found[probe]) else {}


def _batch(text: TextCodec, sequences: list[list[int]]) -> list[str]:
    decoded: list[str] = text.tokenizer.decode_batch(sequences, skip_special_tokens=True)
    return decoded
