# SPDX-License-Identifier: Apache-2.0
"""What generation_config.json asks of an encoder-decoder beyond a request's options: first tokens, forbidden tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.exporters import Export
from genai_bundle.builder.handmade import graph
from genai_bundle.builder.json_file import read_object
from genai_bundle.errors import SourceError

FILE = "generation_config.json"

OFF: Mapping[str, Any] = {
    "num_beam_groups": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "guidance_scale": None,
    "encoder_repetition_penalty": 1.0, "penalty_alpha": None, "forced_eos_token_id": None, "sequence_bias": None,
    "exponential_decay_length_penalty": None, "repetition_penalty": 1.0,
}  # fmt: skip
"""Settings without a place in a pipeline, turned off; and `KEPT`, which golden tests turn off."""

KEPT = ("repetition_penalty", "no_repeat_ngram_size")
"""Settings of these that are options of a request."""


@dataclass(frozen=True)
class Rule:
    """Tokens that are not chosen for the first `until` new tokens; None: never."""

    tokens: tuple[int, ...]
    until: int | None


def settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """generation_config.json; older folders have its keys in config.json."""
    found = read_object(checkpoint.path / FILE)
    return checkpoint.config if found is None else found


def start_tokens(checkpoint: Checkpoint) -> list[int]:
    """What an answer begins with. A first token that is forced is as much given as the one before it."""
    asked = settings(checkpoint)
    keys = ("decoder_start_token_id", "bos_token_id")
    found = next((one[key] for key in keys for one in (asked, checkpoint.config) if one.get(key) is not None), None)
    forced = asked.get("forced_bos_token_id")
    tokens = [found, *([] if forced is None else [forced])]
    wrong = [token for token in tokens if type(token) is not int or token < 0]
    if wrong:
        raise SourceError(f"decoder_start_token_id is {wrong[0]!r}, expected the id of a token", where=FILE)
    return tokens


def rules(checkpoint: Checkpoint, start: int) -> list[Rule]:
    """Which tokens may not be chosen, after `start` given ones."""
    asked = settings(checkpoint)
    words = [word[0] for word in asked.get("bad_words_ids") or [] if len(word) == 1]
    least = max(int(asked.get("min_length") or 0) - start, int(asked.get("min_new_tokens") or 0))
    found = [
        Rule(_ids(checkpoint, "bad_words_ids", [*words, *(asked.get("suppress_tokens") or [])]), None),
        Rule(_ids(checkpoint, "begin_suppress_tokens", asked.get("begin_suppress_tokens") or []), 1),
        Rule(_ids(checkpoint, "eos_token_id", checkpoint.text.eos), least),
    ]
    return [rule for rule in found if rule.tokens and rule.until != 0]


def dropped(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The settings that the bundle does not carry out, such as a beam search, by file."""
    asked = settings(checkpoint)
    nothing = {**OFF, "num_beams": 1}
    found = [key for key, off in nothing.items() if key not in KEPT and asked.get(key) not in (None, off)]
    long = any(len(word) != 1 for word in asked.get("bad_words_ids") or [])
    found += ["bad_words_ids of several tokens"] if long else []
    return {FILE: found} if found else {}


def defaults(checkpoint: Checkpoint, start: int) -> dict[str, Any]:
    """The manifest's `generation`: `max_length` counts the given tokens too."""
    longest = settings(checkpoint).get("max_length")
    found = dict(checkpoint.generation)
    if "max_tokens" not in found and type(longest) is int and longest > start:
        found["max_tokens"] = longest - start
    return found


def with_rules(export: Export, wanted: Sequence[Rule]) -> Export:
    """The export with a graph `suppress`: (logits, step) -> (scores, next step), where there is something to do."""
    if not wanted:
        return export
    logits = next(value for value in export.graphs["decoder"].graph.outputs if value.name == "logits")
    return replace(export, graphs={**export.graphs, "suppress": _suppress(wanted, int(logits.shape[-1]))})


def _suppress(wanted: Sequence[Rule], vocabulary: int) -> ir.Model:
    lines, last = [], "logits"
    constants: dict[str, Any] = {"one": np.int64(1), "zeros": np.zeros(vocabulary, np.float32)}
    for index, rule in enumerate(wanted):
        bias = np.zeros(vocabulary, np.float32)
        bias[list(rule.tokens)] = -np.inf
        constants[f"bias_{index}"] = bias
        added, after = f"bias_{index}", "scores" if index + 1 == len(wanted) else f"scores_{index}"
        if rule.until is not None:
            constants[f"until_{index}"] = np.int64(rule.until)
            lines.append(f"early_{index} = Less (step, until_{index})")
            lines.append(f"added_{index} = Where (early_{index}, bias_{index}, zeros)")
            added = f"added_{index}"
        lines.append(f"{after} = Add ({last}, {added})")
        last = after
    signature = (
        "suppress (float[batch,sequence,vocabulary] logits, int64 step)"
        " => (float[batch,sequence,vocabulary] scores, int64 next)"
    )
    return graph(signature, " ".join(["next = Add (step, one)", *lines]), constants)


def _ids(checkpoint: Checkpoint, key: str, values: Sequence[Any]) -> tuple[int, ...]:
    rows = checkpoint.config.get("vocab_size")
    wrong = [value for value in values if type(value) is not int or not 0 <= value < (rows or 0)]
    if wrong:
        raise SourceError(f"{key} holds {wrong[0]!r}, expected ids of the {rows} tokens", where=FILE)
    return tuple(values)
