# SPDX-License-Identifier: Apache-2.0
"""Answers of a given form: JSON that follows a schema, a regular expression, a Lark grammar, one of some texts.

llguidance says which tokens may come next; all others are excluded before one is chosen. It computes that in a thread
of its own while the model runs.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import jsonschema
import numpy as np
from numpy.typing import NDArray

from genai_bundle.errors import UsageError

from .processors import Scores
from .text import TextCodec
from .vocabulary import Vocabulary

Mask = NDArray[np.bool_]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        hint = 'pip install "genai-bundle[grammar]"'
        raise UsageError("grammars need llguidance, which is not installed", hint=hint) from error
    return llguidance


@dataclass(frozen=True)
class Grammar:
    """The form that an answer has to have: `pipe(..., grammar=Grammar.regex("[0-9]+"))`.

    `source` is llguidance's own form. The constructors raise UsageError for what it does not take.
    """

    source: str

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | str | bool) -> Grammar:
        """Answers are JSON that the schema (an object, or JSON text) validates; spaces and line ends are the model's.

        A schema with a keyword that would not be kept is refused.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise UsageError(f"not JSON: {error}", where="JSON schema") from error
        if not isinstance(schema, Mapping | bool):
            raise UsageError(f"a schema is an object, got {type(schema).__name__}", where="JSON schema")
        plain: Any = json.loads(json.dumps(schema))
        try:
            jsonschema.validators.validator_for(plain, jsonschema.Draft202012Validator).check_schema(plain)
        except jsonschema.SchemaError as error:
            raise UsageError(_line(error.message), where=f"JSON schema, {error.json_path}") from error
        if plain is False:
            raise UsageError("nothing follows the schema `false`", where="JSON schema")
        plain = {} if plain is True else plain
        return _checked("JSON schema", _llguidance().LLMatcher.grammar_from_json_schema(json.dumps(plain)))

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Answers match the whole pattern (syntax of Rust's regex, without look-around and back references)."""
        return _checked("regular expression", _llguidance().LLMatcher.grammar_from_regex(pattern))

    @staticmethod
    def lark(text: str) -> Grammar:
        """Answers are sentences of a Lark grammar whose first rule is `start`."""
        return _checked("Lark grammar", _llguidance().LLMatcher.grammar_from_lark(text))

    @staticmethod
    def choices(texts: Sequence[str]) -> Grammar:
        """The answer is one of the texts."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise UsageError(f"choices are a list of texts that are not empty, got {texts!r}", where="choices")
        return Grammar.regex("|".join(map(_literally, texts)))

    def bind(self, text: TextCodec) -> GrammarProcessor:
        """A processor for one sequence of this tokenizer. Raises UsageError where the grammar does not fit it."""
        tokens = _tokens(text)
        matcher = tokens.matcher(self.source)
        return GrammarProcessor(tokens, matcher)


class GrammarProcessor:
    """Excludes the ids that the grammar does not take. It remembers the ids of the answer that it has consumed."""

    def __init__(self, tokens: _Tokens, matcher: Any) -> None:
        self._tokens, self._matcher = tokens, matcher
        self._start: int | None = None
        self._seen: list[int] = []
        self._waiting: tuple[int, Future[Mask]] | None = None

    def begin(self, ids: Sequence[int]) -> None:
        """Compute the mask of what follows `ids` in another thread."""
        self._wait()
        # The ids may grow while the thread runs.
        self._waiting = len(ids), _pool().submit(self._mask, list(ids))

    def __call__(self, ids: Sequence[int], scores: Scores) -> Scores:
        waiting = self._wait()
        mask = waiting[1] if waiting and waiting[0] == len(ids) else self._mask(ids)
        scores[: mask.size][~mask[: scores.size]] = -np.inf
        scores[mask.size :] = -np.inf  # rows beyond the vocabulary
        return scores

    def restart(self, ids: Sequence[int]) -> None:
        """The answer begins anew behind `ids`."""
        self._wait()
        self._anew(ids)

    def is_finished(self, ids: Sequence[int]) -> bool:
        """Whether nothing can follow `ids`: the text is complete, and an ending id has come or there is none."""
        self._wait()
        self._consume(ids)
        complete = bool(self._matcher.is_stopped() and self._matcher.is_accepting())
        return complete and (not self._tokens.eos or (bool(self._seen) and self._seen[-1] in self._tokens.eos))

    def fork(self) -> GrammarProcessor:
        """A copy that goes its own way."""
        self._wait()
        copy = GrammarProcessor(self._tokens, self._matcher.deep_copy())
        copy._start, copy._seen = self._start, list(self._seen)
        return copy

    def _wait(self) -> tuple[int, Mask] | None:
        """The mask that `begin` asked for. After this, no other thread uses the matcher."""
        waiting, self._waiting = self._waiting, None
        return None if waiting is None else (waiting[0], waiting[1].result())

    def _mask(self, ids: Sequence[int]) -> Mask:
        self._consume(ids)
        return self._tokens.mask(self._matcher, first=not self._seen)

    def _anew(self, ids: Sequence[int]) -> None:
        self._start, self._seen = len(ids), []
        self._matcher.reset()

    def _consume(self, ids: Sequence[int]) -> None:
        """Bring the matcher to the end of `ids`: back over what was taken back, on over what is new."""
        if self._start is None or len(ids) < self._start:
            self._anew(ids)
        answer = list(ids[self._start :])
        same = next((i for i, (a, b) in enumerate(zip(self._seen, answer, strict=False)) if a != b), None)
        same = min(len(self._seen), len(answer)) if same is None else same
        if same < len(self._seen) and (
            self._matcher.is_stopped() or not self._matcher.rollback(len(self._seen) - same)
        ):
            self._matcher.reset()  # one that has stopped counts its tokens otherwise
            same = 0
        self._seen = self._seen[:same]
        for id_ in answer[same:]:
            self._tokens.consume(self._matcher, id_, first=not self._seen)
            self._seen.append(id_)


class _Tokens:
    """A vocabulary as llguidance sees it: its ids, then one more for each id that is another text at the beginning.

    Where a bundle has no ending id, a last one that no model gives stands for it.
    """

    def __init__(self, text: TextCodec) -> None:
        vocabulary = Vocabulary.of(text)
        self.eos = frozenset(text.eos)
        size = max([len(vocabulary.later), *(id_ + 1 for id_ in self.eos)])
        entries = vocabulary.later + [b""] * (size - len(vocabulary.later))
        special = {**vocabulary.special, **{id_: vocabulary.special.get(id_, f"<eos{id_}>") for id_ in self.eos}}
        for id_, name in special.items():
            entries[id_] = name.encode()
        self.size = size
        self.first = {id_: size + place for place, id_ in enumerate(vocabulary.first)}
        self._first_ids = np.fromiter(self.first, np.int64)
        self._first_bytes = list(vocabulary.first.values())
        entries += self._first_bytes
        eos = sorted(self.eos) or [len(entries)]
        if not self.eos:
            entries.append(b"<end>")
            special[eos[0]] = "<end>"
        self._entries, self._text = entries, text
        self._spelling = {one: i for i, one in enumerate(entries[:size]) if one and i not in special}
        self._longest = max(map(len, self._spelling), default=1)
        wrapper = _Wrapper(entries, sorted(special), eos[0], self._tokenize)
        self.tokenizer = _llguidance().LLTokenizer(wrapper, n_vocab=len(entries), eos_token=eos)

    def matcher(self, source: str) -> Any:
        matcher = _llguidance().LLMatcher(self.tokenizer, source, log_level=0)
        if matcher.is_error():
            raise UsageError(_line(matcher.get_error()), where="grammar")
        return matcher

    def mask(self, matcher: Any, *, first: bool) -> Mask:
        """Which ids may come: bool[size]."""
        own = self.first if first else {}
        forced = matcher.compute_ff_bytes()
        if forced and (own or self._tokenize(forced) is None):
            # llguidance would spell it with tokens as they are later on, or cannot spell it as a whole.
            allowed = np.zeros(self.size, bool)
            for id_ in self._beginning(forced, own):
                allowed[id_] = matcher.validate_tokens([own.get(id_, id_)]) == 1
            return allowed if allowed.any() else self._dead_end()
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_stopped() and not matcher.is_accepting():
            self._dead_end()
        every = np.unpackbits(bits, bitorder="little", count=len(self._entries)).astype(bool)
        allowed = every[: self.size].copy()
        if own:
            allowed[self._first_ids] = every[self.size : self.size + len(self.first)]
        return allowed

    def _dead_end(self) -> NoReturn:
        raise UsageError("no token of this vocabulary goes on with the grammar", where="grammar")

    def consume(self, matcher: Any, id_: int, *, first: bool) -> None:
        if matcher.is_stopped() and id_ in self.eos:
            return
        if not matcher.consume_token(self.first.get(id_, id_) if first else id_):
            token = self._text.tokenizer.id_to_token(id_)
            raise UsageError(f"the grammar does not take the token {id_} ({token!r}) here", where="grammar")

    def _beginning(self, forced: bytes, own: Mapping[int, int]) -> list[int]:
        """Ids that a text that begins with `forced` may begin with."""
        found = []
        for id_ in range(self.size):
            entry = self._entries[own.get(id_, id_)]
            if entry and (forced.startswith(entry) or entry.startswith(forced)):
                found.append(id_)
        return found

    def _tokenize(self, text: str | bytes) -> list[int] | None:
        """How this tokenizer spells a text that the grammar forces: as it encodes it, if that is the same text.

        None where it cannot.
        """
        wanted = text.encode() if isinstance(text, str) else bytes(text)
        try:
            ids = self._text.encode(wanted.decode(), add_special=False)
        except (UnicodeDecodeError, UsageError):
            ids = []
        if ids and b"".join(self._entries[id_] for id_ in ids) == wanted:
            return ids
        ids, at = [], 0
        while at < len(wanted):  # the longest token that fits, again and again
            ends = range(min(len(wanted), at + self._longest), at, -1)
            end = next((end for end in ends if wanted[at:end] in self._spelling), None)
            if end is None:
                return None
            ids.append(self._spelling[wanted[at:end]])
            at = end
        return ids


class _Wrapper:
    """What llguidance asks of a tokenizer that it does not know."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int], eos: int, tokenize: Any) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id, self._tokenize = tokens, special, eos, tokenize

    def __call__(self, text: str | bytes) -> list[int]:
        ids: list[int] | None = self._tokenize(text)
        return ids or []


_LOCK = threading.Lock()


def _tokens(text: TextCodec) -> _Tokens:
    """Made once for a bundle: a large vocabulary takes a second or two."""
    with _LOCK:
        if "grammar" not in text.kept:
            text.kept["grammar"] = _Tokens(text)
        tokens: _Tokens = text.kept["grammar"]
        return tokens


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=2, thread_name_prefix="genai-grammar")


def _checked(kind: str, source: str) -> Grammar:
    failed, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(source)
    if failed:
        raise UsageError(_line(messages[0]), where=kind)
    return Grammar(source)


def _line(message: str) -> str:
    """An error of llguidance in one line, without the state that it prints behind it."""
    return re.sub(r"\s+", " ", message.split("<state>")[0]).strip().rstrip(".")


def _literally(text: str) -> str:
    """A regular expression for one text."""
    return re.sub(r"[^\w\s]", lambda m: "\\" + m[0] if m[0].isascii() else m[0], text)
