# SPDX-License-Identifier: Apache-2.0
"""One application on three stacks: the same greedy tokens, and each field has its effect or is refused by name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import UsageError
from genai_runner.interfaces import StopCriteria, Text2TextPipeline, load
from runner.test_interfaces import PROMPT, QUESTION, config

STACKS = ("onnxruntime-genai", "openvino-genai")
ENGINES = ("genai-bundle", *STACKS)

CHANGED: dict[str, dict[str, Any]] = {
    "eos_token_ids": {"eos_token_ids": {1}},
    "stop_strings": {"stop_strings": {"a"}, "num_beams": 2},
    "min_new_tokens": {"min_new_tokens": 3, "num_beams": 2},
    "repetition_penalty": {"repetition_penalty": 2.0, "num_beams": 2},
    "rng_seed": {"rng_seed": 1 << 32, "do_sample": True},
    "num_beam_groups": {"num_beam_groups": 2, "diversity_penalty": 1.0, "num_beams": 2},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "stop_criteria": {"stop_criteria": StopCriteria.NEVER, "num_beams": 2},
}
peers = [pytest.mark.peers, pytest.mark.openvino, pytest.mark.torch]


@pytest.fixture(scope="module")
def pipes(sample: Path) -> Iterator[dict[str, Text2TextPipeline]]:
    made = {engine: load(sample, engine, threads=1) for engine in ENGINES}
    yield made
    for pipe in made.values():
        pipe.close()


@pytest.mark.parametrize("engine", STACKS)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    engine: str, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, engine.replace("-", "_"), None)
    with pytest.raises(UsageError, match="pip install"):
        load(sample, engine)


class TestOnTheSample:
    pytestmark = peers

    def test_the_golden_tokens_come_from_every_engine(self, pipes: dict[str, Text2TextPipeline], sample: Path) -> None:
        with open_bundle(sample) as bundle:
            tests = bundle.manifest.tests
        for test in tests:
            given = test.inputs.get("prompt") or test.inputs["messages"]
            wanted = test.outputs["tokens"][0]
            for engine, pipe in pipes.items():
                found = pipe(given, config(max_new_tokens=test.inputs["max_tokens"]))
                assert found.tokens == wanted, engine

    @pytest.mark.parametrize(
        ("given", "fields"),
        [
            (QUESTION, {}),
            (QUESTION, {"min_new_tokens": 8}),
            (QUESTION, {"stop_strings": {"= 5"}}),
            (PROMPT, {"stop_strings": {"h li", "nothing"}, "max_new_tokens": 40}),
            (PROMPT, {"max_length": 13}),
            (PROMPT, {"max_new_tokens": 0}),
            (PROMPT, {"repetition_penalty": 5.0, "max_new_tokens": 24}),
            (PROMPT, {"eos_token_ids": {1, 6, 265}}),
            (PROMPT, {"do_sample": True, "top_k": 1}),
            (PROMPT, {"do_sample": True, "top_p": 0.0001}),
            (PROMPT, {"do_sample": True, "temperature": 1e-6}),
            ([{"role": "user", "content": "Ünïcode 🙂  <|eos|>"}], {}),
        ],
    )
    def test_fields_mean_the_same_on_every_engine(
        self, pipes: dict[str, Text2TextPipeline], given: Any, fields: dict[str, Any]
    ) -> None:
        wanted = pipes["genai-bundle"](given, config(**fields))
        for engine, pipe in pipes.items():
            assert pipe(given, config(**fields)) == wanted, engine
            assert "".join(pipe.stream(given, config(**fields))) == wanted.text, engine

    @pytest.mark.parametrize("engine", ENGINES)
    def test_seeds_repeat_a_text_and_change_it(self, pipes: dict[str, Text2TextPipeline], engine: str) -> None:
        hot = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 12}
        one, again, other = (pipes[engine](PROMPT, config(rng_seed=seed, **hot)).tokens for seed in (3, 3, 4))
        assert one == again != other

    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_generator_and_a_broken_off_stream(self, pipes: dict[str, Text2TextPipeline], engine: str) -> None:
        pipe, short = pipes[engine], config(max_new_tokens=4)
        stream = pipe.stream(PROMPT, config(max_new_tokens=200))
        next(stream)
        del stream
        made = pipe.generator(PROMPT, short)
        while not made.is_done:
            made.generate_next_token()
        made.append_input_tokens(" One day")
        text = "".join(made.generate_next_token() for _ in range(3))
        if engine == ENGINES[0]:
            return
        ours = pipes[ENGINES[0]].generator(PROMPT, short)
        for _ in range(4):
            ours.generate_next_token()
        ours.append_input_tokens(" One day")
        assert "".join(ours.generate_next_token() for _ in range(3)) == text
        assert ours.tokens == made.tokens[: len(ours.tokens)]

    @pytest.mark.parametrize("engine", STACKS)
    @pytest.mark.parametrize("field", CHANGED)
    def test_what_a_stack_cannot_do_is_refused_as_the_page_says(
        self, pipes: dict[str, Text2TextPipeline], engine: str, field: str
    ) -> None:
        page = (ROOT / "docs" / "interfaces.md").read_text("utf-8")
        row = re.search(rf"^\| `{field}` \|(.*)\|(.*)\|(.*)\|$", page, re.MULTILINE)
        assert row
        says = row[ENGINES.index(engine) + 1]
        fields = CHANGED[field]
        if "refused" in says or "below" in says or "more" in says:
            with pytest.raises(UsageError, match=f"{engine} cannot do {field}"):
                pipes[engine](PROMPT, config(**fields))
        else:
            assert pipes[engine](PROMPT, config(**fields)).tokens

    def test_a_default_that_a_stack_is_not_told_is_refused(self, pipes: dict[str, Text2TextPipeline]) -> None:
        pipe: Any = pipes["openvino-genai"]
        pipe.text.generation = {"min_p": 0.1}
        try:
            assert pipe(PROMPT, config()).tokens
            with pytest.raises(UsageError, match=r"min_p=0\.1: it is a default of the bundle"):
                pipe(PROMPT, config(do_sample=True))
        finally:
            pipe.text.generation = {}

    def test_the_export_is_written_once(self, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GENAI_CACHE_DIR", str(tmp_path))
        with ThreadPoolExecutor(2) as pool:  # at once, as two processes would
            made = list(pool.map(lambda _: load(sample, "onnxruntime-genai", threads=1), range(2)))
        written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        assert len(list((tmp_path / "exports").iterdir())) == 1
        with load(sample, "onnxruntime-genai", threads=1) as third:
            made.append(third)
            assert len({tuple(pipe(PROMPT, config()).tokens) for pipe in made}) == 1
        assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        monkeypatch.setenv("GENAI_CACHE_DIR", "/dev/null/x")
        with pytest.raises(UsageError, match="Set GENAI_CACHE_DIR"):
            load(sample, "onnxruntime-genai")


class TestOnARandomLlama:
    pytestmark = peers

    def test_greedy_tokens_and_beams_are_transformers_on_every_engine(self, drafted: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(drafted / "model")
        end = model.config.eos_token_id

        def wanted(start: list[int], **options: Any) -> list[list[int]]:
            ids = torch.tensor([start])
            rows = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, **options
            )
            return [_cut(row[len(start) :].tolist(), end) for row in rows]

        beams = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0}
        diverse: list[list[list[int]]] = []
        for engine in ENGINES:
            with load(drafted / "both.genai", engine, threads=1) as pipe:
                start = pipe.generator("A dog").tokens
                plain: dict[str, Any] = {"max_new_tokens": 16, "eos_token_ids": {end}}
                assert [_cut(pipe("A dog", config(**plain)).tokens, end)] == wanted(start), engine
                found = pipe("A dog", config(**plain, **beams)).sequences
                assert [_cut(one.tokens, end) for one in found] == wanted(start, **beams), engine
                groups = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8, "num_return_sequences": 3}
                if engine != "onnxruntime-genai":
                    diverse.append(
                        [_cut(one.tokens, end) for one in pipe("A dog", config(**plain, **groups)).sequences]
                    )
        assert diverse[0] == diverse[1]


def _cut(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
