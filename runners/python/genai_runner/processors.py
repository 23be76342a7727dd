# SPDX-License-Identifier: Apache-2.0
"""What changes the scores of the next token, before one is chosen. Normative text: spec/ops/sample.md.

The order is that of transformers' processors: logit bias, penalties, n-grams, bad words, the least length; then the
caller's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genai_bundle.errors import UsageError

from .options import Options, Word

if TYPE_CHECKING:
    from .text import TextCodec

Scores = NDArray[np.float64]
Ids = Sequence[int] | NDArray[np.integer[Any]]

Processor = Callable[[Sequence[int], Scores], Scores]
"""(the ids of prompt and answer so far, f64[V]) -> f64[V]. It may change and return the array that it is given.

The ids only ever grow by one a call, except after the decoder was rewound. One that has a method `begin(ids)` is told
that the model is about to run for the scores that follow `ids`: it may prepare them in another thread. One that has a
method `fork()` is asked for a copy where another answer goes on from here; others are shared. `restart(ids)` tells that
a new answer begins behind `ids`; `is_finished(ids)` ends the answer.
"""


@runtime_checkable
class Bindable(Protocol):
    """What becomes a processor once the bundle's tokenizer is known, such as a grammar."""

    def bind(self, text: TextCodec) -> Processor:
        """A processor with a memory of its own, for one sequence."""


def begin(processors: Sequence[Processor], ids: Sequence[int]) -> None:
    """Tell those that want to know that the scores behind `ids` are about to be computed."""
    for processor in processors:
        told = getattr(processor, "begin", None)
        if told is not None:
            told(ids)


def restart(processors: Sequence[Processor], ids: Sequence[int]) -> None:
    """Tell those that want to know that a new answer begins behind `ids`."""
    for processor in processors:
        told = getattr(processor, "restart", None)
        if told is not None:
            told(ids)


def finished(processors: Sequence[Processor], ids: Sequence[int]) -> bool:
    """Whether one of them says that nothing can follow `ids`."""
    asked = (getattr(processor, "is_finished", None) for processor in processors)
    return any(one(ids) for one in asked if one is not None)


def forked(processors: Sequence[Processor]) -> tuple[Processor, ...]:
    """Processors for another answer that goes on from the same ids."""
    return tuple(getattr(one, "fork", lambda one=one: one)() for one in processors)


def changes_scores(options: Options, processors: Sequence[Processor] = ()) -> bool:
    """Whether `processed` may change anything."""
    return bool(
        processors
        or options.logit_bias
        or options.repetition_penalty != 1.0
        or options.frequency_penalty
        or options.presence_penalty
        or options.no_repeat_ngram_size
        or options.bad_words
        or options.min_tokens
    )


def processed(
    scores: Scores,
    options: Options,
    history: Ids = (),
    prompt_length: int | None = None,
    eos: Collection[int] = (),
    processors: Sequence[Processor] = (),
) -> Scores:
    """Scores after everything that the request asks for but temperature and filters. Changes `scores`.

    Args:
        scores: f64[V].
        history: the ids of prompt and answer so far; those outside the vocabulary weigh nothing.
        prompt_length: how many of `history` are the prompt. None where that is not known: then what looks at the
            answer alone has no effect.
        eos: the ids that end a text.

    Raises:
        UsageError: an id does not exist, a processor gives something else than scores, or no id is left.
    """
    ids = np.asarray(history, dtype=np.int64).reshape(-1)
    _bias(scores, options.logit_bias)
    penalise(scores, ids, options.repetition_penalty)
    if prompt_length is not None:
        _count(scores, ids[prompt_length:], options.frequency_penalty, options.presence_penalty)
    _exclude(scores, _repeating(ids, options.no_repeat_ngram_size))
    _exclude(scores, _completing(ids, options.bad_words))
    if prompt_length is not None and not options.ignore_eos and ids.size - prompt_length < options.min_tokens:
        _exclude(scores, list(eos))
    for processor in processors:
        scores = _called(processor, history, scores)
    if not np.isfinite(scores.max()):
        hint = "Ask for less: logit_bias, bad_words, no_repeat_ngram_size, min_tokens, processors or the grammar"
        raise UsageError("the request's options and processors exclude every token", hint=hint)
    return scores


def penalise(scores: Scores, history: Ids, penalty: float) -> Scores:
    """Weaken the ids of `history` in place: a negative score times the penalty, another one divided by it."""
    if penalty != 1.0:
        seen = _known(np.asarray(history, dtype=np.int64).reshape(-1), scores)
        old = scores[seen]
        scores[seen] = np.where(old < 0, old * penalty, old / penalty)  # repeated ids write the same value again
    return scores


def _count(scores: Scores, new: NDArray[np.int64], frequency: float, presence: float) -> None:
    """Weaken each id of the answer by `frequency` for every time that it came, and by `presence` once."""
    if new.size and (frequency or presence):
        ids, counts = np.unique(_known(new, scores), return_counts=True)
        scores[ids] -= frequency * counts + presence


def _bias(scores: Scores, biases: Sequence[tuple[int, float]]) -> None:
    for id_, bias in biases:
        if id_ >= scores.size:
            raise UsageError(
                f"logit_bias names the id {id_}, and the vocabulary has {scores.size}", where="option logit_bias"
            )
        scores[id_] += bias


def _repeating(ids: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The ids that would complete a group of `size` ids that stands in `ids` already."""
    groups = ids.size - size + 1
    if size == 0 or groups <= 0:
        return ids[:0]
    last = ids[groups:]  # what the next id would stand behind
    same = np.ones(groups, bool)
    for place in range(size - 1):
        same &= ids[place : place + groups] == last[place]
    return ids[size - 1 :][same]


def _completing(ids: NDArray[np.int64], words: Sequence[Word]) -> list[int]:
    """The last ids of the words of which all the others stand at the end."""
    found: list[int] = []
    for word in words:
        if isinstance(word, str):
            raise UsageError(f"{word!r} has no ids here", where="option bad_words", hint="Give it as a list of ids")
        before = len(word) - 1
        if before <= ids.size and ids[ids.size - before :].tolist() == list(word[:-1]):
            found.append(word[-1])
    return found


def _exclude(scores: Scores, ids: Ids) -> None:
    if len(ids):
        scores[_known(np.asarray(ids, np.int64), scores)] = -np.inf


def _known(ids: NDArray[np.int64], scores: Scores) -> NDArray[np.int64]:
    return ids[(ids >= 0) & (ids < scores.size)]


def _called(processor: Processor, history: Ids, scores: Scores) -> Scores:
    """What a processor makes of the scores, checked: it is the caller's code."""
    size = scores.size
    given: Any = processor(history if isinstance(history, list) else [int(id_) for id_ in history], scores)
    result = np.asarray(given, dtype=np.float64) if given is not None else np.zeros(())
    name = getattr(processor, "__name__", type(processor).__name__)
    if result.shape != (size,):
        what = "nothing" if given is None else f"the shape {list(result.shape)}"
        raise UsageError(f"{name} gave {what}, expected scores [{size}]", where="argument processors")
    if np.isnan(result).any() or (result == np.inf).any():
        raise UsageError(f"{name} gave scores that hold NaN or +inf", where="argument processors")
    return result
