# SPDX-License-Identifier: Apache-2.0
"""A request in pieces of work, so that many can take turns: a part of the prompt, or one token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from genai_bundle.manifest import Generate

from .backends.base import Array
from .context import to_run
from .decode import Decoder
from .metrics import Recorder
from .options import SHIFT
from .speculation import saw
from .state import Saved
from .values import Emission

if TYPE_CHECKING:
    from .interpreter import Request, Scope
    from .program import Program


class TurnDecoder(Decoder):
    """A decoder whose next logits may be computed in parts, or by somebody else."""

    @property
    def place(self) -> tuple[Program, Generate, str | None]:
        """What it runs: generations of one place may share a run."""
        return self._request.program, self._step, self._request.arguments.adapter

    @property
    def record(self) -> Recorder:
        """What its request is measured with."""
        return self._request.record

    @property
    def can_join(self) -> bool:
        """Whether it may share its runs with others, as far as the request tells."""
        return not self._ahead and self._request.options.overflow != SHIFT

    @property
    def has_one_pending(self) -> bool:
        """Whether one token, the last, is all that its states lack."""
        return len(self._pending) == 1 and self.can_join

    def check(self) -> None:
        """Before others run for it: end where the caller wants no more."""
        self._request.check()

    def prefill(self, most: int, put: Callable[[Emission], None]) -> bool:
        """Run at most `most` of the pending tokens; whether all are run. What the body emits is put."""
        self._pending = to_run(self._body, self._request.options, self.tokens, self._pending)
        if len(self._carried) == 1 and len(self._pending) > most:
            piece = self._body.pieces(self._pending[:most])[0]
            for emission in self._run(piece):
                put(emission)
            self._request.record.prefill_tokens += len(piece)
            self._pending = self._pending[len(piece) :]
            return False
        for emission in self._forward():
            put(emission)
        return True

    def _run(self, piece: list[int]) -> Iterator[Emission]:
        """Run the first of the pending tokens."""
        _, inner = yield from self._body.run(piece, self._carried)
        saw(self._speculation, len(self.tokens) - len(self._pending), len(piece), inner)

    def hand_over(self) -> tuple[dict[str, Saved], int]:
        """What the states hold, which are empty then, and for how many tokens."""
        saved = {group.name: group.save() for group in self._body.states}
        for group in self._body.states:
            group.reset()
        return saved, len(self.tokens) - 1

    def take_back(self, saved: dict[str, Saved]) -> None:
        """Fill the states again."""
        for group in self._body.states:
            group.load(saved[group.name])

    def put(self, logits: Array) -> None:
        """Take f[V], the logits behind the last token, which others computed."""
        self._pending, self._logits = [], logits

    def token(self) -> Iterator[Emission]:
        """Compute the logits unless they are there, draw a token, emit it."""
        yield from self._forward()
        yield from self._take()

    def finish(self) -> Iterator[Emission]:
        """Emit what is left."""
        return self._finish()


class Task:
    """One request. `wants_token`: its prompt is computed, and the next turn is a token.

    kind: requests of one kind may share a run. passed: how often later ones were let past it. cost: of the last turn,
    in tokens of the prompt; another piece of work counts as a whole chunk.
    """

    def __init__(
        self,
        request: Request,
        scope: Scope,
        chunk: int,
        put: Callable[[Emission | BaseException | None], None],
        priority: int,
        number: int,
    ) -> None:
        self.request, self.priority, self.number = request, priority, number
        self.passed = self.turns = 0
        self.wants_token = False
        self.cost = chunk
        self.step: Generate
        self.decoder: TurnDecoder
        self._put, self._chunk = put, chunk
        self._work: Iterator[None] | None = self._all(scope)

    @property
    def kind(self) -> tuple[str, str | None]:
        return self.step.where, self.request.arguments.adapter

    def go_on(self) -> bool:
        """Work until the next turn; False when all is done."""
        if self._work is None:
            return False
        try:
            next(self._work)
        except StopIteration:
            self._work = None
        return self._work is not None

    def end(self, error: Exception | None) -> None:
        """No more turns: tell the stream, with the error if there is one."""
        if self.wants_token:
            self._leave()
        self._work = None
        self._put(error)
        if error is not None:
            self._put(None)
        self.request.release()

    def _all(self, scope: Scope) -> Iterator[None]:
        for step in self.request.program.manifest.steps:
            if isinstance(step, Generate) and not self.request.options.several and not self.request.program.literal:
                yield from self._generate(step, scope)
            else:  # anything else works on its own, from one emission to the next
                for emission in self.request.steps((step,), scope):
                    self._put(emission)
                    yield

    def _generate(self, step: Generate, scope: Scope) -> Iterator[None]:
        self.step, self.decoder = step, TurnDecoder(self.request, step, scope)
        decoder = self.decoder
        while not decoder.is_done:
            self.cost = max(1, min(self._chunk, len(decoder.tokens) - self.request.record.cached_tokens))
            if decoder.prefill(self._chunk, self._put):
                break
            yield
        decoder.remember()
        self.wants_token = True
        while not decoder.is_done:
            for emission in decoder.token():
                self._put(emission)
            if not decoder.is_done:
                yield
        for emission in decoder.finish():
            self._put(emission)
        self._leave()
        self.request.ended(decoder.stopped)

    def _leave(self) -> None:
        """Note what was generated."""
        self.wants_token = False
        self.request.new_tokens += self.decoder.new_tokens
        self.request.logprobs += self.decoder.logprobs
