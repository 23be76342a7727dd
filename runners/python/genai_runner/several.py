# SPDX-License-Identifier: Apache-2.0
"""Several answers to one prompt, which is run once. Normative text: spec/runner.md, Several answers and Beams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from genai_bundle.errors import UsageError
from genai_bundle.manifest import Emit, Generate, Step

from .beams import Found, search
from .company import company
from .options import Options
from .sequences import Sequence
from .text import TextCodec, first_stop
from .values import Emission

if TYPE_CHECKING:
    from .decode import Decoder
    from .interpreter import Request
    from .turns import TurnDecoder


def answers(decoder: TurnDecoder, request: Request, step: Generate) -> Iterator[Emission]:
    """Carry out a `generate`: one answer as it comes, or several."""
    if not request.options.several:
        yield from decoder.run()
        return
    if _emits(step.do):
        raise UsageError("several answers need a body that emits nothing", where=step.where, hint="Ask for one")
    yield from (_searched if request.options.num_beams > 1 else _drawn)(decoder, request)


def _emits(steps: Iterable[Step]) -> bool:
    inner = ("do", "then", "orelse")
    return any(isinstance(step, Emit) or any(_emits(getattr(step, part, ())) for part in inner) for step in steps)


def _drawn(decoder: TurnDecoder, request: Request) -> Iterator[Emission]:
    """Draw answers, the i-th with row i of the generator. The first is emitted as it comes; with `best_of`, the best
    is, at the end."""
    options = request.options
    count = options.best_of or options.n
    before = request.env.draws.get(0, 0)
    decoder.get_logits()
    others = company(decoder)
    decoders = [decoder, *(others.fork(decoder) for _ in range(1, count))]
    for row, one in enumerate(decoders):
        one.row = row
    for some in others.at_once(decoders):
        while running := [one for one in some if not one.is_done]:
            others.run(running)
            for one in running:
                yield from _next(one, shown=one is decoder and options.best_of is None)
            if decoder in running and decoder.is_done:
                others.remember(decoder)
    if options.best_of is None:
        yield from decoder.finish()
    request.env.draws[0] = before + max(len(one.new_tokens) for one in decoders)
    found = [_found(one) for one in decoders]
    if options.best_of is not None:
        found = sorted(found, key=lambda one: -one.score)[: options.n]  # stable: of equals the one that was first
        decoder.settle(found[0])
        yield from decoder.emit()
    request.sequences = [_sequence(one, options, request.program.text) for one in found]


def _next(decoder: TurnDecoder, *, shown: bool) -> Iterator[Emission]:
    """One token more, which is emitted or not."""
    if shown:
        yield from decoder.token()
    else:
        decoder.generate_next_token()


def _found(decoder: Decoder) -> Found:
    """An answer with OpenAI's measure of `best_of`: log probability per token."""
    mean = sum(one.logprob for one in decoder.logprobs) / max(len(decoder.logprobs), 1)
    return Found(decoder.new_tokens, mean, decoder.stopped, decoder.logprobs, decoder.carried())


def _searched(decoder: TurnDecoder, request: Request) -> Iterator[Emission]:
    """Search for the best answers with beams, and emit the best, at the end."""
    options, text = request.options, request.program.text
    eos = text.eos if text and not options.ignore_eos else ()

    def ends(tokens: list[int]) -> bool:
        if tokens[-1] in eos:
            return True
        return text is not None and bool(options.stop) and first_stop(text.decode(tokens), options.stop) >= 0

    found = search(decoder, options, eos, ends)
    decoder.settle(found[0])
    yield from decoder.emit()
    request.sequences = [_sequence(one, options, text) for one in found]


def _sequence(found: Found, options: Options, text: TextCodec | None) -> Sequence:
    chosen = options.best_of is not None or options.num_beams > 1
    return Sequence(
        text=text.cut(found.tokens, options.stop) if text else "",
        tokens=found.tokens,
        finish_reason="stop" if found.stopped else "length",
        logprobs=None if options.logprobs is None else tuple(found.logprobs),
        score=found.score if chosen else None,
    )
