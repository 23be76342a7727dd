# SPDX-License-Identifier: Apache-2.0
"""The decode engine: `generate` as a loop that runs only what changes from token to token.

It gives what the expansion (expand.py) gives, token for token; tests compare the two. `Decoder` is also the mid-level
interface of applications that drive generation themselves: append tokens, generate the next one, look at the logits,
rewind.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from genai_bundle.errors import BackendError, UsageError
from genai_bundle.manifest import Generate

from .backends.base import Array
from .body import Body, bare
from .context import free, room_for, to_run
from .expand import ids_name
from .forking import forked
from .metrics import Metrics
from .processors import begin, finished, restart
from .sampling import sample
from .sequences import TokenLogprob, logprob_of
from .speculation import saw, speculation
from .text import TextStream
from .values import Emission, Value

if TYPE_CHECKING:
    from .beams import Found
    from .interpreter import Request, Scope


class Decoder:
    """One generation. Tokens are ids; `tokens` holds the prompt and everything after it.

    A token that was appended or sampled is run when logits are next needed, not before: nothing is computed twice or
    in vain. `row`: which of several answers this is. `logprobs`: of the new tokens, where the options need them.
    """

    def __init__(self, request: Request, step: Generate, scope: Scope) -> None:
        self._request, self._step, self._scope = request, step, scope
        self._ids = ids_name(step)
        self._carried = {name: request.value(init, scope, step.where) for name, (init, _) in step.carry.items()}
        self._body = Body(request, bare(step), step.logits, scope, self._ids)
        self.tokens: list[int] = [int(token) for token in np.asarray(self._carried[self._ids]).flat]
        if not self.tokens:
            raise UsageError("the prompt is empty: there is no token to begin with", where=step.where)
        self._pending = list(self.tokens)
        self._prompt = len(self.tokens)
        request.prompt_tokens += self._prompt
        self._recall()
        self.room = room_for(self._body, request.options, len(self._pending))
        self._speculation = speculation(request, self._body, step, scope, self._ids)
        self._ahead: list[tuple[int, Array]] = []  # guesses that the states hold already, and the logits behind each
        self._draws = request.env.draws.get(0, 0)
        self._logits: Array | None = None
        self.row, self.logprobs = 0, list[TokenLogprob]()
        self.stopped = False
        self._eos = request.program.text.eos if request.program.text else ()
        self.processors = request.env.processors
        self._stream, self._whole = self._new_stream(), ""
        # Outputs that get tokens, outputs that get text, and which of these get it in pieces.
        declared = request.program.manifest.outputs
        texts = [output for output, value in step.emit.items() if value != "token"]
        streamed = [output for output in texts if declared[output].stream_axis is not None]
        self._outputs = [output for output in step.emit if output not in texts], texts, streamed

    # -- the mid-level interface --------------------------------------------------------------------------------------

    @property
    def new_tokens(self) -> list[int]:
        """Ids after the prompt."""
        return self.tokens[self._prompt :]

    @property
    def body(self) -> Body:
        """What it runs, and the states."""
        return self._body

    @property
    def prompt_length(self) -> int:
        """How many of `tokens` are the prompt."""
        return self._prompt

    @property
    def is_done(self) -> bool:
        """An ending token or stop string has come, or `max_tokens` or the context is used up."""
        return self.stopped or len(self.tokens) - self._prompt >= self.room

    @property
    def metrics(self) -> Metrics:
        """What the last turn has cost until now."""
        return self._request.record.metrics(self._request.prompt_tokens)

    def append_tokens(self, ids: Sequence[int]) -> None:
        """Add tokens that were not sampled: a user's next turn, or a forced answer. They count as prompt."""
        added = [int(token) for token in ids]
        self._forget()
        waiting = len(self._pending) + len(added)  # first: a turn that does not fit leaves everything as it was
        self.room = room_for(self._body, self._request.options, waiting)
        self._pending += added
        self.tokens += added
        self._prompt = len(self.tokens)
        restart(self.processors, self.tokens)
        self._draws = self._request.env.draws.get(0, 0)  # the next draw is not the first one again
        self.stopped, self._stream, self.logprobs = False, self._new_stream(), []
        self._request.record.turn()

    def get_logits(self) -> Array:
        """f32[V]: scores of the token that follows all of `tokens`."""
        for emission in self._forward():
            self._request.collect(emission)
        assert self._logits is not None
        return self._logits

    def set_logits(self, logits: Array) -> None:
        """Replace the scores that the next token is drawn from, f32[V]."""
        if logits.shape != self.get_logits().shape:
            raise UsageError(f"logits have the shape {list(self.get_logits().shape)}, got {list(logits.shape)}")
        self._logits = logits

    def generate_next_token(self) -> int:
        """Draw the next token, append and return it. Raises UsageError when `is_done`."""
        if self.is_done:
            raise UsageError("generation is done", hint="Append tokens or start a new request")
        self.get_logits()
        return self._draw()

    def accept(self, token: int) -> None:
        """Append `token` as if it had been drawn."""
        options, env = self._request.options, self._request.env
        if options.logprobs is not None or options.best_of is not None:
            self.logprobs.append(logprob_of(self.get_logits(), token, options.logprobs or 0))
        env.draws[0] = self._draws + len(self.tokens) - self._prompt + 1
        self.tokens.append(token)
        if self._ahead and self._ahead[0][0] == token:
            self._logits = self._ahead.pop(0)[1]
            self._request.record.accepted_tokens += 1
        else:
            self._forget()
            self._pending = [*self._pending, token]
        self._carried[self._ids] = np.array([[token]], np.int64)
        self._piece = self._stream.push(token) if self._stream else ""
        self.stopped = (token in self._eos and not options.ignore_eos) or bool(self._stream and self._stream.stopped)
        self.stopped = self.stopped or finished(self.processors, self.tokens)
        if self.is_done:
            self._forget()

    def rewind_to(self, length: int) -> None:
        """Go back to the first `length` tokens. Raises UsageError where a state of the model cannot go back."""
        if not 0 < length <= len(self.tokens):
            raise UsageError(f"cannot rewind to {length}: the sequence has {len(self.tokens)} tokens")
        if len(self._carried) > 1:
            raise UsageError("cannot rewind: the loop carries more than tokens", where=self._step.where)
        self._forget()
        states = self._body.states
        held = max((group.length for group in states if group.spec.tokens), default=0)
        before = held - (len(self.tokens) - len(self._pending))  # what a session held before this request
        if before < 0:
            raise UsageError("cannot rewind: the oldest tokens were let go", where=self._step.where)
        keep = length - 1  # the last token is run again: its logits are what comes next
        longer = [group for group in states if group.length > before + keep]
        for group in sorted(longer, key=lambda group: group.can_rewind(before + keep)):
            group.rewind(before + keep)  # one that cannot comes first, and raises before anything has changed
        self._pending = self.tokens[min(keep, len(self.tokens) - len(self._pending)) : length]
        self.tokens = self.tokens[:length]
        self._prompt = min(self._prompt, length)
        del self.logprobs[max(0, length - self._prompt) :]
        self._logits, self.stopped, self._stream = None, False, self._new_stream()
        for token in self.new_tokens:
            if self._stream:
                self._stream.push(token)

    # -- several answers ----------------------------------------------------------------------------------------------

    def fork(self, *, states: bool = True) -> Self:
        """An independent copy that goes on from here, with its own states, or with none where others keep them."""
        self._forget()
        twin = copy.copy(self)
        twin._request = forked(self._request, states=states)
        twin._scope = self._scope.new_child()
        twin._body, twin._speculation, twin._ahead = self._body.twin(twin._request, twin._scope), None, []
        twin.tokens, twin._pending, twin.logprobs = list(self.tokens), list(self._pending), list(self.logprobs)
        twin._carried, twin.processors = dict(self._carried), twin._request.env.processors
        twin._stream = self._new_stream()
        for token in self.new_tokens:
            if twin._stream:
                twin._stream.push(token)
        return twin

    def carried(self, token: int | None = None) -> dict[str, Value]:
        """What the loop carries: now, or behind `token`."""
        return self._carried | ({} if token is None else {self._ids: np.array([[token]], np.int64)})

    def settle(self, found: Found) -> None:
        """Take an answer that was found elsewhere for this one's own. Nothing can be generated behind it."""
        self.tokens = [*self.tokens[: self._prompt], *found.tokens]
        self.logprobs, self.stopped, self._carried = found.logprobs, found.stopped, dict(found.carried)
        self._request.env.draws[0] = self._draws + len(found.tokens)

    def emit(self) -> Iterator[Emission]:
        """All new tokens at once, and what the loop leaves behind."""
        tokens, texts, streamed = self._outputs
        for token in self.new_tokens:
            yield from self._emissions(tokens, token)
        codec = self._request.program.text
        text = codec.cut(self.new_tokens, self._request.options.stop) if codec and texts else ""
        yield from (Emission(output, text) for output in texts if text or output not in streamed)
        self._scope.update(self._carried)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Emission]:
        """Generate to the end; each emission as soon as it exists."""
        while not self.is_done:
            yield from self._forward()
            if len(self.tokens) == self._prompt:
                self.remember()  # for requests that come meanwhile
            yield from self._take()
        self.remember()
        yield from self._finish()

    def _take(self) -> Iterator[Emission]:
        """Draw the next token, and emit it and the text that is certain now."""
        tokens, _, streamed = self._outputs
        yield from self._emissions(tokens, self._draw())
        if self._piece:
            yield from (Emission(output, self._piece) for output in streamed)
        self._whole += self._piece

    def _finish(self) -> Iterator[Emission]:
        """Emit the rest of the text, and leave behind what the loop carries."""
        _, texts, streamed = self._outputs
        rest = self._stream.flush() if self._stream else ""
        for output in texts:
            if output not in streamed:
                yield Emission(output, self._whole + rest)
            elif rest:
                yield Emission(output, rest)
        self._scope.update(self._carried)

    def _emissions(self, outputs: Sequence[str], token: int) -> Iterator[Emission]:
        for output in outputs:
            yield self._request.emission(output, np.array([[token]], np.int64), self._step.where)

    def prefill_all_but_last_piece(self) -> Iterator[Emission]:
        """For the expansion: run the pieces of the prompt that come before the first sampled logits."""
        pieces = self._body.pieces(self._pending)
        for piece in pieces[:-1]:
            yield from self._body.run(piece, self._carried)
        self._scope["$ids"] = np.array([pieces[-1]], np.int64)
        self._scope["$prompt"] = np.array([self.tokens], np.int64)

    def _forward(self) -> Iterator[Emission]:
        """Run what is pending, so that the logits are those of the last token."""
        if not self._pending:
            return
        began = time.perf_counter()
        self._pending = to_run(self._body, self._request.options, self.tokens, self._pending)
        guesses = self._guess()
        begin(self.processors, self.tokens)
        place = len(self.tokens) - len(self._pending)
        for piece in self._body.pieces([*self._pending, *guesses]):
            logits, inner = yield from self._body.run(piece, self._carried, 1 + len(guesses))
            place = saw(self._speculation, place, len(piece), inner)
        for name, (_, following) in self._step.carry.items():
            if name != self._ids:
                self._carried[name] = inner[following]
        if len(self.tokens) == self._prompt:
            self._request.record.prefilled(len(self._pending), began)
        if self._speculation and len(self._pending) == 1:
            self._speculation.ran(time.perf_counter() - began)
        self._pending, self._logits = [], logits[0]
        self._ahead = list(zip(guesses, logits[1:], strict=True)) if guesses else []

    def _guess(self) -> list[int]:
        """Tokens that may come next and are run along with the pending one; no more than one run takes."""
        if self._speculation is None or self._logits is None or len(self._pending) != 1:
            return []
        most = [group.most - 1 for group in self._body.states if group.most]
        left = free(self._body)
        room = min([self.room - (len(self.tokens) - self._prompt) - 1, *most, *([] if left is None else [left - 1])])
        guesses = self._speculation.propose(self.tokens, room, self._logits.size)
        self._request.record.draft_tokens += len(guesses)
        return guesses

    def _forget(self) -> None:
        """Let the states forget guesses that did not come true."""
        if self._ahead and self._speculation:
            began = time.perf_counter()
            self._body.rewind(len(self._ahead))
            self._speculation.missed(len(self._ahead), time.perf_counter() - began)
            self._ahead = []

    def _draw(self) -> int:
        if self._logits is None:
            raise BackendError("the body gave no logits", where=self._step.where)
        options = self._request.options
        step = self._draws + len(self.tokens) - self._prompt
        token = sample(
            self._logits,
            options,
            history=self.tokens,
            prompt_length=self._prompt,
            eos=self._eos,
            processors=self.processors,
            step=step,
            row=self.row,
        )
        self._request.record.token(token)
        self.accept(token)
        return token

    # -- what it stands on --------------------------------------------------------------------------------------------

    def _new_stream(self) -> TextStream | None:
        text, options = self._request.program.text, self._request.options
        if options.stop and text is None:
            raise UsageError("stop strings need a tokenizer, and this bundle has none", where=self._step.where)
        wanted = options.stop or any(value != "token" for value in self._step.emit.values())
        return text.stream(options.stop) if text and wanted else None

    def _recall(self) -> None:
        """Take from the cache, or a file, what was computed before for the beginning of this prompt."""
        program, adapter, held = self._request.program, self._request.arguments.adapter, 0
        if len(self._carried) == 1:
            if program.prefixes is not None:
                held = program.prefixes.recall(self._body, adapter, self.tokens)
            if program.saved is not None:
                held = program.saved.recall(self._body, adapter, self.tokens, held)
            self._pending = self.tokens[held:]
            self._request.record.cached_tokens = held

    def remember(self) -> None:
        """Leave in the cache what was computed for the tokens until now."""
        prefixes = self._request.program.prefixes
        if prefixes is not None and len(self._carried) == 1:
            self._forget()
            held = len(self.tokens) - len(self._pending)
            prefixes.remember(self._body, self._request.arguments.adapter, self.tokens[:held])
