# SPDX-License-Identifier: Apache-2.0
"""`generation_config.json` as transformers writes it: options, forced and forbidden tokens, and much that is unset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_bundle.builder.checkpoint import generation_defaults
from genai_bundle.builder.json_file import read_object
from genai_bundle.importers.foreign import Section

FILE = "generation_config.json"

OPTIONS = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size",
    "max_new_tokens", "stop_strings",
)  # fmt: skip
"""What `generation_defaults` reads."""

IDS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")

CALLER = (
    "num_beams", "num_beam_groups", "early_stopping", "length_penalty", "diversity_penalty", "num_return_sequences",
    "penalty_alpha", "forced_eos_token_id", "use_cache", "cache_implementation", "cache_config",
    "num_assistant_tokens", "prefill_chunk_size",
)  # fmt: skip
"""How a caller searches, caches and ends a text that is cut off; a bundle does not say."""

NOTHING = (
    "_from_model_config", "transformers_version", "return_dict_in_generate", "output_attentions", "output_scores",
    "output_hidden_states", "output_logits", "low_memory", "renormalize_logits", "_commit_hash",
)  # fmt: skip
"""Changes no token."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_length": (0,), "min_new_tokens": (0,), "encoder_no_repeat_ngram_size": (0,),
    "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "encoder_repetition_penalty": (1.0,),
    "remove_invalid_values": (False,), "trust_remote_code": (False,), "return_timestamps": (False,),
    "sequence_bias": ({},), "guidance_scale": (1, 1.0), "token_healing": (False,),
}  # fmt: skip
"""Keys that change tokens, unless they have such a value."""


SPOKEN = (
    "lang_to_id", "task_to_id", "language", "task", "is_multilingual", "no_timestamps_token_id", "prev_sot_token_id",
    "alignment_heads", "max_initial_timestamp_index", "median_filter_width",
)  # fmt: skip
"""What a speech model is told by the ids with which an answer begins, and what its timestamps need."""


@dataclass(frozen=True)
class Generation:
    """options: the manifest's `generation`. banned: ids that are never drawn. begin: not as the first.

    forced: ids behind the first one of an answer.

    values: the whole file, for the ids that end a text. notes: what is left to the caller.
    """

    options: dict[str, Any]
    values: dict[str, Any]
    banned: tuple[int, ...]
    begin: tuple[int, ...]
    forced: tuple[int, ...]
    section: Section | None
    notes: tuple[str, ...]


def read_generation(path: Path) -> Generation:
    """Read the file of a folder; without one, all is as transformers has it by default. Raises SourceError."""
    values = read_object(path / FILE)
    if values is None:
        return Generation(generation_defaults({}), {}, (), (), (), None, ())
    values = {key: value for key, value in values.items() if value is not None}  # null is unset
    section = Section(values, FILE)
    section.ignore(*OPTIONS, *IDS, *NOTHING)
    for key, neutral in NEUTRAL.items():
        section.only(key, *neutral)
    notes = [f"left out, for the caller to choose: {key}" for key in section.ignore(*CALLER)]
    options = generation_defaults(values)
    longest = section.count("max_length")
    if longest:
        notes.append(f"left out: max_length {longest}, which counts the prompt too; use max_tokens")
    banned = {*section.ids("suppress_tokens"), *_words(section)}
    spoken = section.ignore(*SPOKEN)
    notes += [f"left out, the input `start` says it: {key}" for key in spoken]
    forced = [*section.ids("forced_bos_token_id"), *_forced(section)]
    begin = section.ids("begin_suppress_tokens")
    return Generation(options, values, tuple(sorted(banned)), tuple(begin), tuple(forced), section, tuple(notes))


def _forced(section: Section) -> list[int]:
    """`forced_decoder_ids`, pairs of place and id. One without an id, to be found out, is not understood."""
    pairs = section.peek("forced_decoder_ids") or []
    whole = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    if not whole or [pair[0] for pair in pairs] != list(range(1, len(pairs) + 1)):
        return []
    if any(type(pair[1]) is not int for pair in pairs):
        return []
    section.ignore("forced_decoder_ids")
    return [pair[1] for pair in pairs]


def _words(section: Section) -> list[int]:
    """`bad_words_ids` of one token each; longer ones are not understood, for they depend on what came before."""
    words = section.peek("bad_words_ids") or []
    if not isinstance(words, list) or not all(isinstance(word, list) and len(word) == 1 for word in words):
        return []
    if any(type(word[0]) is not int for word in words):
        return []
    section.ignore("bad_words_ids")
    return [word[0] for word in words]
