# SPDX-License-Identifier: Apache-2.0
"""Our side: the bundle, through the interface that gives one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import genai_runner
from genai_bundle import __version__
from genai_bundle.bench import Side, Times, timed
from genai_bundle.errors import UsageError
from genai_runner.scheduler import Scheduler

CHUNK = 256
"""Tokens of a prompt that are computed between two tokens of the other requests."""

WORDS = "Once upon a time a small boat went down the river, and {} people stood on the bank and waved. "


class Ours:
    def __init__(self, side: Side) -> None:
        self._pipe = genai_runner.load(
            side.source,
            side.backend,
            variant=side.variant,
            precision=side.precision,
            threads=side.threads,
            saved_prefixes=False,
        )

    def facts(self) -> dict[str, Any]:
        places = self._pipe.placements.values()
        precision = "fast" if any(place.precision == "fast" for place in places) else "exact"
        variants = sorted({place.variant for place in places})
        return {"version": __version__, "precision": precision, "variant": ", ".join(variants)}

    def ids(self, context: int) -> list[int]:
        """A prompt of that many tokens: what the bundle makes of a few words, and text after them."""
        found = self._begin(0).tokens
        count = 0
        while len(found) < context:
            found += self._pipe.encode(WORDS.format(count), add_special=False)
            count += 1
        return found[:context]

    def run(self, ids: Sequence[int], steps: int, batch: int) -> Times:
        if batch != 1:
            return self._together(ids, steps, batch)
        decoder = self._begin(steps + 1)
        known = len(decoder.tokens)
        decoder.append_tokens(ids[known:])
        return Times(timed(decoder.generate_next_token, 1)[0], timed(decoder.generate_next_token, steps))

    def _together(self, ids: Sequence[int], steps: int, batch: int) -> Times:
        """Requests at once: the steps are those of the one that begins last, while all the others still generate."""
        pipe, meanwhile = self._pipe, batch * (1 + len(ids) // CHUNK)
        options: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 1 + steps + meanwhile}
        with Scheduler(pipe, rows=batch, chunk=CHUNK) as scheduler:
            streams = [scheduler.submit(pipe.decode(ids), **options) for _ in range(batch)]
            results = [stream.result for stream in streams]
        found = [result.metrics for result in results]
        if abs(found[0].prompt_tokens - len(ids)) > max(2, len(ids) // 50):
            raise UsageError(f"a prompt of {len(ids)} tokens became one of {found[0].prompt_tokens}")
        last = max(found, key=lambda one: one.time_to_first_token_seconds)
        return Times(last.time_to_first_token_seconds, last.inter_token_latencies_seconds[:steps])

    def _begin(self, tokens: int) -> genai_runner.Decoder:
        """A generation that has seen the shortest prompt. Everything before it is not what is measured."""
        pipe, text = self._pipe, WORDS.split(" ", 1)[0]
        inputs = pipe.manifest.inputs
        name = pipe.prompt_input
        if name is None or inputs[name].type != "text":
            chats = [name for name, one in inputs.items() if one.type == "messages"]
            if not chats:
                raise UsageError(f"{pipe.manifest.name!r} takes no text to go on from")
            return pipe.generator(
                **{chats[0]: [{"role": "user", "content": text}]}, max_tokens=tokens, temperature=0, ignore_eos=True
            )
        return pipe.generator(text, max_tokens=tokens, temperature=0, ignore_eos=True)


open_engine = Ours
