# SPDX-License-Identifier: Apache-2.0
"""What fits the context, and what becomes of more than that. Normative text: spec/runner.md, Long texts."""

from __future__ import annotations

from collections.abc import Sequence

from genai_bundle.errors import UsageError

from .body import Body
from .options import SHIFT, Options

DEFAULT_MAX_TOKENS = 256  # where neither the caller, the bundle nor a context sets a bound


def context_of(body: Body) -> int | None:
    """The positions of the smallest state that grows; None where none has a bound."""
    return min((group.capacity for group in body.states if group.capacity and group.spec.tokens), default=None)


def room_for(body: Body, options: Options, waiting: int) -> int:
    """How many tokens may come behind `waiting` ones that are not run yet: `max_tokens`, or less in a full context.

    Raises UsageError where nothing may, or the request asks for a shift that this body cannot make.
    """
    asked, context = options.max_tokens, context_of(body)
    if context is None:
        return DEFAULT_MAX_TOKENS if asked is None else asked
    if options.overflow == SHIFT:
        if not body.only_ids or any(group.spec.scope == "session" for group in body.states):
            message = "this model's context cannot be shifted: more than ids went into it, or a session keeps it"
            raise UsageError(message, where="option overflow", hint="Leave overflow out, and shorten the prompt")
        if options.overflow_keep > context - 2:
            message = f"overflow_keep is {options.overflow_keep}, and the context has {context} positions"
            raise UsageError(message, where="option overflow_keep", hint="Keep less")
        return DEFAULT_MAX_TOKENS if asked is None else asked
    left = context - waiting - max(group.length for group in body.states if group.capacity and group.spec.tokens)
    if left <= 0:
        message = f"the prompt of {waiting} tokens leaves no room in the context of {context}"
        raise UsageError(message, hint=f"Shorten the prompt, or let the oldest tokens go: overflow={SHIFT!r}")
    return left if asked is None else min(asked, left)


def free(body: Body) -> int | None:
    """Positions that are left; None where there is no bound."""
    context = context_of(body)
    return None if context is None else context - max(group.length for group in body.states if group.spec.tokens)


def to_run(body: Body, options: Options, tokens: Sequence[int], pending: list[int]) -> list[int]:
    """What to run so that the logits behind all `tokens` come: `pending`, or, where that does not fit, a beginning and
    an end of `tokens`, on states that are empty then."""
    if options.overflow != SHIFT:
        return pending
    left = free(body)
    if left is None or len(pending) <= left:
        return pending
    context, keep = context_of(body) or 0, options.overflow_keep
    for group in body.states:
        group.reset()
    last = (context - keep) // 2
    return [*tokens[:keep], *tokens[max(keep, len(tokens) - last) :]]
