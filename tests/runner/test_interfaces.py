# SPDX-License-Identifier: Apache-2.0
"""The working group's interface over this runner: every field has the effect of the option that it stands for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from genai_bundle.errors import UsageError
from genai_runner import load as load_bundle
from genai_runner.interfaces import (
    BeamSearchConfig,
    Device,
    GenerationConfig,
    GenerationInput,
    SamplingConfig,
    StopCriteria,
    Text2TextPipeline,
    engine_names,
    enumerate_devices,
    load,
    register_engine,
    registry,
)

PROMPT = "Once upon a time there was a dog"
QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
PROPOSED = {
    "max_length", "max_new_tokens", "min_new_tokens", "eos_token_ids", "stop_strings", "do_sample", "rng_seed",
    "temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "num_beam_groups", "diversity_penalty",
    "length_penalty", "num_return_sequences", "no_repeat_ngram_size", "stop_criteria",
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe(sample: Path) -> Iterator[Text2TextPipeline]:
    with load(sample, threads=1) as pipeline:
        yield pipeline


def config(**fields: Any) -> GenerationConfig:
    """The sample's ends, greedy and short, with some fields changed."""
    made = GenerationConfig(max_new_tokens=12, eos_token_ids={1, 6})
    for name, value in fields.items():
        owner = next(part for part in (made, made.sampling_config, made.beam_search_config) if hasattr(part, name))
        setattr(owner, name, value)
    return made


def test_the_fields_are_the_proposal_s_and_the_page_has_a_row_for_each() -> None:
    parts = (GenerationConfig, SamplingConfig, BeamSearchConfig)
    names = {field.name for part in parts for field in dataclasses.fields(part)}
    assert names - {"sampling_config", "beam_search_config"} == PROPOSED
    page = (ROOT / "docs" / "interfaces.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|.*\|.*\|.*\|$", page, re.MULTILINE)) == PROPOSED


def test_the_first_configuration_is_the_bundle_s(pipe: Text2TextPipeline) -> None:
    found = pipe.get_generation_config()
    assert found.eos_token_ids == {1, 6}
    assert found.sampling_config == SamplingConfig(do_sample=True, temperature=0.7, top_k=50, top_p=0.95)
    found.max_new_tokens = 3
    assert pipe.get_generation_config().max_new_tokens is None


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"max_new_tokens": 0}, {"max_tokens": 0}),
        ({"max_length": 13}, {"max_tokens": 4}),
        ({"max_length": 13, "max_new_tokens": 3}, {"max_tokens": 3}),
        ({"stop_strings": {"town", "liv"}}, {"stop": ["liv", "town"]}),
        ({"repetition_penalty": 5.0}, {"repetition_penalty": 5.0}),
        ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1}),
        ({"do_sample": True, "rng_seed": 9}, {"temperature": 1.0, "seed": 9}),
        ({"do_sample": True, "temperature": 3.0, "top_k": 7}, {"temperature": 3.0, "top_k": 7}),
        ({"do_sample": True, "top_p": 0.5}, {"temperature": 1.0, "top_p": 0.5}),
        ({"num_beams": 3}, {"num_beams": 3}),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "stop_criteria": StopCriteria.EARLY},
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "early_stopping": True},
        ),
        (
            {"num_beams": 3, "num_return_sequences": 2, "length_penalty": -2.0},
            {"num_beams": 3, "n": 2, "length_penalty": -2.0},
        ),
        ({"num_beams": 2, "stop_criteria": StopCriteria.NEVER}, {"num_beams": 2, "early_stopping": "never"}),
        ({"num_return_sequences": 3, "do_sample": True}, {"n": 3, "temperature": 1.0}),
        ({"temperature": 3.0, "top_k": 7, "rng_seed": 5, "top_p": 0.5}, {}),
    ],
)
def test_fields_are_options(
    pipe: Text2TextPipeline, sample: Path, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    plain = {"max_tokens": 12, "temperature": 0, "top_k": 0, "top_p": 1.0, "seed": 0}
    with load_bundle(sample, threads=1) as bundle:
        wanted = bundle(PROMPT, **{**plain, **options})
    found = pipe(PROMPT, config(**fields))
    assert (found.text, found.tokens, found.finish_reason) == (wanted.text, wanted.tokens, wanted.finish_reason)
    assert [one.tokens for one in found.sequences] == [one.tokens for one in wanted.sequences]
    if config(**fields).several:
        with pytest.raises(UsageError, match="come whole"):
            pipe.stream(PROMPT, config(**fields))
        return
    assert "".join(pipe.stream(PROMPT, config(**fields))) == wanted.text


def test_other_ids_may_end_a_text(pipe: Text2TextPipeline) -> None:
    answer = pipe(QUESTION, config())
    assert answer.tokens[-1] == 6
    assert answer.finish_reason == "stop"
    assert len(pipe(QUESTION, config(eos_token_ids={1})).tokens) == 12
    early = pipe(QUESTION, config(eos_token_ids={answer.tokens[2]}))
    assert (early.tokens, early.finish_reason) == (answer.tokens[:3], "stop")
    late = pipe(QUESTION, config(min_new_tokens=8))
    assert 6 not in late.tokens[:8]
    assert late.tokens[:6] == answer.tokens[:6]


def test_a_generator_goes_token_by_token_and_takes_more(pipe: Text2TextPipeline) -> None:
    whole = pipe(PROMPT, config(max_new_tokens=6))
    made = pipe.generator(GenerationInput(PROMPT), config(max_new_tokens=6))
    given = made.tokens
    text = ""
    while not made.is_done:
        text += made.generate_next_token()
    assert (text, made.tokens) == (whole.text, given + whole.tokens)
    with pytest.raises(UsageError, match="done"):
        made.generate_next_token()
    made.append_input_tokens(" One day")
    assert not made.is_done
    made.generate_next_token()


def test_what_was_set_holds_for_calls_without_a_configuration(sample: Path) -> None:
    with load(sample, threads=1) as pipeline:
        pipeline.set_generation_config(config(max_new_tokens=2))
        assert len(pipeline(PROMPT).tokens) == 2
        with pytest.raises(UsageError, match="top_p"):
            pipeline.set_generation_config(config(top_p=1.5))
        assert len(pipeline(PROMPT).tokens) == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_length": 9}, "leaves no room in 9"),
        ({"rng_seed": 1 << 64}, "rng_seed"),
        ({"temperature": 0.0}, "do_sample=False"),
        ({"top_k": 0}, "top_k is 0"),
        ({"stop_strings": "town"}, "a set of strings"),
        ({"stop_criteria": "EARLY"}, "StopCriteria"),
        ({"length_penalty": 2.0}, "num_beams is 1"),
        ({"num_beam_groups": 2}, "num_beams is 1"),
        ({"diversity_penalty": 1.0}, "num_beams is 1"),
        ({"stop_criteria": StopCriteria.NEVER}, "num_beams is 1"),
        ({"num_return_sequences": 2}, "the same text again"),
        ({"num_beams": 2, "do_sample": True}, "do_sample"),
        ({"num_beams": 3, "num_beam_groups": 2}, "does not divide"),
        ({"num_beams": 4, "num_beam_groups": 2}, "would all be the same"),
        ({"num_beams": 3, "diversity_penalty": 2.0}, "num_beam_groups is 1"),
        ({"num_beams": 3, "num_return_sequences": 4}, "there are 3 beams"),
    ],
)
def test_what_makes_no_sense_is_refused(pipe: Text2TextPipeline, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pipe(PROMPT, config(**fields))


def test_a_misspelt_field_is_no_field(pipe: Text2TextPipeline) -> None:
    with pytest.raises(AttributeError):
        pipe.get_generation_config().max_tokens = 3  # type: ignore[attr-defined]


def test_an_input_is_a_text_or_messages(pipe: Text2TextPipeline) -> None:
    for wrong in (GenerationInput(), GenerationInput("x", QUESTION)):
        with pytest.raises(UsageError, match="one of both"):
            pipe(wrong)


def test_devices_choose_the_backend(sample: Path) -> None:
    assert enumerate_devices()[0] == Device("CPU", {"backend": "onnxruntime", "device": "cpu"})
    with load(sample, device="reference:cpu") as slow:
        assert slow.pipeline.backend_name == "reference"  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"no device 'TPU' here.*It has CPU"):
        load(sample, device="TPU")
    with pytest.raises(UsageError, match=r"no engine 'x'.*genai-bundle"):
        load(sample, "x")


class Echo:
    """An engine of another package."""

    name = "echo"

    def devices(self) -> list[Device]:
        return [Device("CPU")]

    def create(self, path: Path, device: Device, **settings: Any) -> Text2TextPipeline:
        return load(path, device=enumerate_devices()[0], threads=1)


def test_other_engines_register_or_are_declared(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    with pytest.raises(UsageError, match="there already"):
        register_engine(type("Ours", (Echo,), {"name": "genai-bundle"})())
    register_engine(Echo())
    assert engine_names()[0] == "genai-bundle"
    assert "echo" in engine_names()
    with load(sample, "echo") as pipeline:
        assert pipeline(PROMPT, config(max_new_tokens=1)).tokens == [440]
    monkeypatch.setattr(registry, "_registered", {})
    point = EntryPoint("echo", f"{__name__}:Echo", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda **_: [point])
    monkeypatch.setattr(EntryPoint, "load", lambda self: Echo)
    with load(sample, "echo") as pipeline:
        assert pipeline.engine == "genai-bundle"
    monkeypatch.setattr(EntryPoint, "load", lambda self: object())
    with pytest.raises(UsageError, match="no engine called 'echo'"):
        load(sample, "echo")
