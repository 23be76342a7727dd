# SPDX-License-Identifier: Apache-2.0
"""500 random configurations beside transformers' own list of processors, on recorded and on random logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import genai_runner
from genai_runner import philox
from genai_runner.options import Options
from genai_runner.processors import processed
from genai_runner.sampling import kept, sample

pytestmark = pytest.mark.torch

Floats = NDArray[np.float64]
STEPS, CHUNKS, EACH = 12, 10, 50


@pytest.fixture(scope="module")
def recorded(sample: Path) -> Floats:
    """What the project's own model says after each token of a story: f64[60, V]."""
    generator = genai_runner.load(sample).generator("Once upon a time", max_tokens=60)
    rows = []
    while not generator.is_done:
        rows.append(generator.get_logits().copy())
        generator.generate_next_token()
    return np.array(rows, np.float64)


def drawn(rng: np.random.Generator, vocabulary: int, history: list[int]) -> dict[str, Any]:
    """Options at random, each as often off as on."""

    def some(value: Any, off: Any = None) -> Any:
        return value if rng.random() < 0.5 else off

    def ids(most: int) -> list[int]:
        return [int(rng.choice(history)) if rng.random() < 0.7 else int(rng.integers(vocabulary)) for _ in range(most)]

    options = {
        "temperature": some(float(rng.uniform(0.3, 2.5)), 0.0 if rng.random() < 0.2 else 1.0),
        "top_k": some(int(rng.integers(1, 60))),
        "top_p": some(float(rng.uniform(0, 1))),
        "min_p": some(float(rng.uniform(0, 0.3))),
        "typical_p": some(float(rng.uniform(0.01, 0.99))),
        "repetition_penalty": some(float(rng.uniform(0.5, 2))),
        "frequency_penalty": some(float(rng.uniform(-1, 2))),
        "presence_penalty": some(float(rng.uniform(-1, 2))),
        "no_repeat_ngram_size": some(int(rng.integers(1, 5))),
        "min_tokens": some(int(rng.integers(1, STEPS))),
        # Eighths: transformers holds biases as float32.
        "logit_bias": some({id_: int(rng.integers(-40, 40)) / 8 for id_ in ids(3)}),
        "bad_words": some([ids(int(rng.integers(1, 4))) for _ in range(4)]),
        "seed": int(rng.integers(1 << 62)),
    }
    return {name: value for name, value in options.items() if value is not None}


def counted(options: Options, prompt: int) -> Any:
    """The penalties that transformers lacks, by OpenAI's formula: s - c f - [c > 0] g."""

    def penalty(ids: Any, scores: Any) -> Any:
        import torch

        counts = torch.bincount(ids[0, prompt:], minlength=scores.shape[-1]).to(scores.dtype)
        return scores - counts * options.frequency_penalty - (counts > 0).to(scores.dtype) * options.presence_penalty

    return penalty


def theirs(options: Options, prompt: int, eos: Sequence[int], mine: Sequence[Any]) -> Any:
    """The list that `generate` makes of these options, in its own order."""
    import torch
    import transformers
    from transformers.generation.utils import GenerationMixin

    hf: Any = transformers
    config = hf.GenerationConfig(
        do_sample=options.temperature > 0,
        temperature=options.temperature or None,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p or None,
        typical_p=options.typical_p,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        min_new_tokens=options.min_tokens,
        bad_words_ids=[list(word) for word in options.bad_words] or None,
        sequence_bias=[[[id_], bias] for id_, bias in options.logit_bias] or None,
    )
    config._eos_token_tensor = torch.tensor(list(eos))
    model: Any = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    model._merge_criteria_processor_list = lambda own, given: hf.LogitsProcessorList([*own, *given])
    found = GenerationMixin._get_logits_processor(
        model, config, input_ids_seq_length=prompt, logits_processor=hf.LogitsProcessorList(mine)
    )
    names = [type(one).__name__ for one in found]
    before = ("SequenceBiasLogitsProcessor", "RepetitionPenaltyLogitsProcessor")
    found.insert(sum(name in before for name in names), counted(options, prompt))
    return found


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_t17_all_options_agree_with_transformers_token_by_token(chunk: int, recorded: Floats) -> None:
    import torch

    torch.set_num_threads(1)
    for number in range(chunk * EACH, (chunk + 1) * EACH):
        rng = np.random.default_rng(number)
        rows = recorded[rng.integers(40) :] if number % 2 else rng.normal(size=(STEPS, 300)) * rng.uniform(1, 5)
        vocabulary = rows.shape[1]
        history: list[int] = rng.integers(0, 30, 20).tolist()
        prompt, eos = len(history), rng.integers(0, vocabulary, 2).tolist()
        options = Options.merge({}, drawn(rng, vocabulary, history))
        shift = rng.normal(size=vocabulary)
        mine = [lambda _ids, scores, shift=shift: scores + shift] if rng.random() < 0.3 else []
        hers = [lambda _ids, scores, shift=shift: scores + torch.from_numpy(shift)] if mine else []
        known = [word for word in options.bad_words if not (len(word) == 1 and word[0] in eos)]
        ours = Options.merge(vars(options), {"bad_words": known})
        processors = theirs(options, prompt, eos, hers)
        for step in range(STEPS):
            ids, found = torch.tensor([history]), torch.from_numpy(rows[step].copy())[None]
            for one in processors:  # as the list itself does, which looks at each one's signature every time
                found = one(ids, found)
            scores = found[0]
            probabilities = torch.softmax(scores, -1).numpy()
            at = {"history": history, "prompt_length": prompt, "eos": eos, "processors": mine}
            token = sample(rows[step], ours, step=step, **at)
            if options.temperature == 0:
                assert token == int(scores.argmax()), number
            else:
                mass = np.cumsum(probabilities)
                u = philox.uniform(options.seed, step=step)
                assert token == int(np.searchsorted(mass, u * mass[-1], side="right")), number
                left, weights = kept(processed(rows[step].copy(), ours, **at), ours)
                assert left[weights > 0].tolist() == np.flatnonzero(probabilities).tolist(), number
                # Both are float64, and add in another order: a few units in the last place.
                assert np.allclose(weights / weights.sum(), probabilities[left], rtol=1e-11, atol=0), number
            history = [*history, token]


def test_the_configurations_have_each_option_on_and_off() -> None:
    drawings = [drawn(np.random.default_rng(number), 300, [1, 2, 3]) for number in range(CHUNKS * EACH)]
    for name in set().union(*drawings) - {"temperature", "seed"}:
        assert 150 < sum(name in options for options in drawings) < 350, name
    assert 20 < sum(options["temperature"] == 0 for options in drawings) < 100
