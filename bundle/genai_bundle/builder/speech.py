# SPDX-License-Identifier: Apache-2.0
"""What a speech model's prompt is made of, its spectrogram, and the small graphs that turn words into prompt tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tokenizers import Tokenizer

from genai_bundle.builder.checkpoint import Checkpoint
from genai_bundle.builder.generation import FILE, settings, start_tokens
from genai_bundle.builder.handmade import graph
from genai_bundle.builder.json_file import read_object
from genai_bundle.builder.log_mel import Spectrogram
from genai_bundle.errors import SourceError

FEATURES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Prompt:
    """The tokens before an answer: start, then a language and a task where the model has several, then `end`.

    languages: tokens by their text, `<|en|>`. tasks: tokens by a plain word.
    """

    start: int
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    end: tuple[int, ...]

    @property
    def length(self) -> int:
        return 1 + (2 if self.languages else 0) + len(self.end)


def read_prompt(checkpoint: Checkpoint) -> Prompt:
    """From generation_config.json. Raises SourceError where it has languages but no tasks, or they are no tokens."""
    asked = settings(checkpoint)
    languages, tasks = asked.get("lang_to_id") or {}, asked.get("task_to_id") or {}
    if bool(languages) != bool(tasks):
        raise SourceError("has one of lang_to_id and task_to_id, expected both or none", where=FILE)
    silent = asked.get("no_timestamps_token_id")
    end = [] if silent is None else [silent]
    wrong = [token for token in (*languages.values(), *tasks.values(), *end) if type(token) is not int or token < 0]
    if wrong:
        raise SourceError(f"{wrong[0]!r} in lang_to_id, task_to_id or no_timestamps_token_id is no token", where=FILE)
    return Prompt(start_tokens(checkpoint)[0], languages, tasks, tuple(end))


def features_files(checkpoint: Checkpoint) -> list[str]:
    """The file that describes the spectrogram."""
    return [name for name in FEATURES if (checkpoint.path / name).is_file()][:1]


def read_spectrogram(checkpoint: Checkpoint) -> Spectrogram:
    """As transformers' feature extractor of the folder has it. Raises SourceError for one of another kind."""
    where = next(iter(features_files(checkpoint)), None)
    if where is None:
        raise SourceError(
            f"{FEATURES[0]} is missing", where=str(checkpoint.path),
            hint="It says how sound is made ready; download it too",
        )  # fmt: skip
    config = read_object(checkpoint.path / where) or {}
    config = config.get("feature_extractor", config)
    kind = config.get("feature_extractor_type")
    if kind != "WhisperFeatureExtractor" or config.get("do_normalize") or config.get("dither"):
        raise SourceError(f"describes {kind}, expected a log-mel spectrogram without noise or normalising", where=where)
    from transformers import AutoFeatureExtractor

    made: Any = AutoFeatureExtractor.from_pretrained(checkpoint.path, local_files_only=True)
    return Spectrogram(made.sampling_rate, made.n_samples, made.n_fft, made.hop_length, np.asarray(made.mel_filters))


def sound(samples: int, rate: int, seed: int) -> NDArray[np.float32]:
    """A sound for golden tests: two tones that rise and fall, some noise, and silence in between."""
    time = np.arange(samples) / rate
    rising = np.sin(2 * np.pi * (220 * (seed + 1) + 300 * time) * time)
    falling = 0.5 * np.sin(2 * np.pi * (2500 - 700 * time) * time)
    noise = np.modf(np.sin(np.arange(samples) * 12.9898 + seed) * 43758.5453)[0]
    found: NDArray[np.float32] = ((0.3 * rising + 0.2 * falling + 0.02 * noise) * (time % 0.5 < 0.4)).astype(np.float32)
    return found


def make_detect(prompt: Prompt) -> ir.Model:
    """The graph `detect`: the likeliest language after the start, as transformers finds it."""
    return graph(
        "detect (float[1,positions,vocabulary] logits) => (int64[1,1] token)",
        "last = Slice (logits, minus, end, axis)  scores = Gather <axis = 2> (last, languages)"
        "  best = ArgMax <axis = 2, keepdims = 0> (scores)  token = Gather (languages, best)",
        {
            "languages": np.array(sorted(prompt.languages.values())), "minus": np.array([-1]),
            "end": np.array([2**31 - 1]), "axis": np.array([1]),
        },
    )  # fmt: skip


def make_words(prompt: Prompt, tokenizer: Tokenizer) -> ir.Model:
    """The graph `words`: the ids of a language's or a task's name -> its token. Any other word is an error.

    A language has its token's text, its code and its names; a table, for no operation can look words up.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    words = {**prompt.languages, **{f"<|{task}|>": token for task, token in prompt.tasks.items()}, **prompt.tasks}
    codes = {text.strip("<|>"): token for text, token in prompt.languages.items()}
    named = {name: codes[code] for name, code in TO_LANGUAGE_CODE.items() if code in codes}
    words |= codes | named | {name.title(): token for name, token in named.items()}
    rows = {tuple(tokenizer.encode(word, add_special_tokens=False).ids): token for word, token in words.items()}
    rows.pop((), None)
    return _lookup(list(rows.items()))


def _lookup(rows: Sequence[tuple[tuple[int, ...], int]]) -> ir.Model:
    width = max(len(ids) for ids, _ in rows) + 1  # one more, so that a longer text equals none
    table = np.full((len(rows), width), -1)
    for row, (ids, _) in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return graph(
        "words (int64[1,N] ids) => (int64[1,1] token)",
        "long = Concat <axis = 1> (ids, filling)  cut = Slice (long, begin, end, axis)  equal = Equal (cut, table)"
        "  ones = Cast <to = 7> (equal)  whole = ReduceMin <keepdims = 0> (ones, axis)  hit = Cast <to = 9> (whole)"
        "  found = Compress <axis = 0> (tokens, hit)  token = Reshape (found, single)",
        {
            "table": table, "tokens": np.array([token for _, token in rows]), "filling": np.full((1, width), -1),
            "begin": np.array([0]), "end": np.array([width]), "axis": np.array([1]), "single": np.array([1, 1]),
        },
    )  # fmt: skip
