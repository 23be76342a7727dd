# SPDX-License-Identifier: Apache-2.0
"""Answers under a grammar: whatever the scores are, the text has the form that was asked for."""

from __future__ import annotations

import json
import re
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import genai_runner
from conftest import optional
from genai_bundle.errors import UsageError
from genai_runner.text import TextCodec
from runner import tokenizers_small as small
from runner.tiny import counter

optional("llguidance", "grammar")

from genai_runner.grammar import Grammar, GrammarProcessor  # noqa: E402

EOS = 2
BYTES = TextCodec(small.tokenizer(small.BYTE_LEVEL), eos=[EOS])
# Ids that end something come first once an answer is long enough: random texts would never end.
CLOSING = {"}": 60, "]": 59, '"': 58, ",": 50, "0": 40, "": -90, "[": -20, "{": -20}
SPACE = "▁Ġ#ĊĉčĠ\n\t\r "
FAMILIES = [
    ("bert-base-uncased", "[SEP]"),
    ("clip", "<|endoftext|>"),
    ("gpt2", "<|endoftext|>"),
    ("llama-2", "</s>"),
    ("smollm2", "<|im_end|>"),
    ("t5-small", "</s>"),
    ("whisper-tiny", "<|endoftext|>"),
    ("llama-3", "<|end_of_text|>"),
    ("qwen2.5", "<|im_end|>"),
]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@cache
def scores_that_close(codec: TextCodec) -> np.ndarray[Any, np.dtype[np.float64]]:
    names = [codec.token(id_) for id_ in range(codec.tokenizer.get_vocab_size() + 7)]  # logits are often padded
    scores = np.array([0 if name is None else CLOSING.get(name.strip(SPACE), 0) for name in names], float)
    scores[list(codec.eos)] = 100
    return scores


def written(grammar: Grammar, codec: TextCodec, seed: int, long: int = 60, most: int = 900) -> str:
    """A complete text of random scores under the grammar."""
    processor, random = grammar.bind(codec), np.random.default_rng(seed)
    closing, ids = scores_that_close(codec), [5]
    size = closing.size
    for count in range(most):
        scores = random.normal(size=size) + (closing if count > long else 0)
        processor.begin(ids)
        scores = processor(ids, scores)
        token = int(np.argmax(scores))
        assert np.isfinite(scores[token])
        ids.append(token)
        if token in codec.eos:
            return codec.decode(ids[1:-1])
        if processor.is_finished(ids):
            return codec.decode(ids[1:])
    raise AssertionError(f"no end: {codec.decode(ids)!r}")


def suite(shared: Path) -> list[tuple[str, Any]]:
    """The schemas of the JSON-Schema-Test-Suite, each once."""
    found: dict[str, tuple[str, Any]] = {}
    with tarfile.open(shared / "schemas/JSON-Schema-Test-Suite.tar.gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            parts = member.name.split("/")
            if parts[0] != "tests" or not member.isfile() or ("optional" in parts and "format" not in parts):
                continue
            content = archive.extractfile(member)
            assert content is not None
            for case in json.load(content):
                schema = case["schema"]
                if parts[1] == "draft7" and isinstance(schema, dict):
                    schema = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
                found.setdefault(json.dumps(schema), (f"{member.name}: {case['description']}", schema))
    return list(found.values())


@pytest.mark.shared
def test_what_is_written_under_300_schemas_of_the_test_suite_validates(shared: Path) -> None:
    taken, refused = 0, 0
    for name, schema in suite(shared):
        try:
            grammar = Grammar.json_schema(schema)
        except UsageError:
            refused += 1
            continue
        taken += 1
        if taken > 300:
            continue
        value = json.loads(written(grammar, BYTES, seed=taken))
        validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
        assert not list(validator.iter_errors(value)), name
    assert taken >= 300
    assert taken + refused > 600


@pytest.mark.shared
@pytest.mark.parametrize(("family", "eos"), FAMILIES)
def test_every_tokenizer_writes_what_the_grammar_says(shared: Path, family: str, eos: str) -> None:
    codec = TextCodec((shared / "tokenizers" / family / "tokenizer.json").read_bytes())
    codec.eos = (int(codec.tokenizer.token_to_id(eos)),)
    if family == "t5-small":  # it has no braces
        with pytest.raises(UsageError, match="no token of this vocabulary"):
            written(Grammar.json_schema(PERSON), codec, seed=1)
    else:
        jsonschema.validate(json.loads(written(Grammar.json_schema(PERSON), codec, seed=1, long=8)), PERSON)
    assert re.fullmatch("true[0-9]{3} (x|y)+", written(Grammar.regex("true[0-9]{3} (x|y)+"), codec, seed=2, long=8))
    assert written(Grammar.choices(["yes (a.b)", "no"]), codec, seed=3) in ("yes (a.b)", "no")


@pytest.mark.parametrize("name", ["llama", "gemma", "strip two", "byte fallback", "metaspace", "byte level"])
def test_every_kind_of_decoder_writes_what_the_grammar_says(name: str) -> None:
    codec = TextCodec(small.tokenizer(small.DECODERS[name]), eos=[EOS])
    grammar = Grammar.regex(" ?(the|é日本s|🙂){1,6},")
    for seed in range(8):
        assert re.fullmatch(" ?(the|é日本s|🙂)+,", written(grammar, codec, seed, long=20))


@pytest.mark.parametrize("name", ["unknown", "replace across", "ctc", "bpe"])
def test_tokenizers_whose_tokens_have_no_text_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="each have a text of their own"):
        Grammar.regex("a").bind(TextCodec(small.tokenizer(small.DECODERS[name]), eos=[EOS]))


def test_lark_grammars() -> None:
    grammar = Grammar.lark('start: greeting " " NAME\ngreeting: "hi" | "bye"\nNAME: /[A-Z][a-z]{2,4}/')
    for seed in range(4):
        assert re.fullmatch("(hi|bye) [A-Z][a-z]{2,4}", written(grammar, BYTES, seed))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Grammar.json_schema({"type": "foo"}), r"JSON schema, \$\.type: 'foo' is not valid"),
        (lambda: Grammar.json_schema({"properties": {"a": {"uniqueItems": True}}}), 'Unimplemented keys: \\["uniqueIt'),
        (lambda: Grammar.json_schema('{"type": '), "JSON schema: not JSON"),
        (lambda: Grammar.json_schema(False), "nothing follows"),
        (lambda: Grammar.regex("a+b("), "regular expression: .*unclosed group"),
        (lambda: Grammar.regex("(?=a)b"), "look-around"),
        (lambda: Grammar.lark('start: "a" foo'), 'Lark grammar: .*unknown name: "foo"'),
        (lambda: Grammar.choices([]), "choices are a list"),
        (lambda: Grammar.choices(["a", ""]), "choices are a list"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_once(make: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        make()
    assert "\n" not in str(caught.value)


def allowed(processor: GrammarProcessor, ids: list[int]) -> set[str]:
    scores = processor(ids, np.zeros(BYTES.tokenizer.get_vocab_size()))
    return {BYTES.tokenizer.id_to_token(int(id_)) for id_ in np.flatnonzero(np.isfinite(scores))}


def ids_of(text: str) -> list[int]:
    return [int(BYTES.tokenizer.token_to_id(letter)) for letter in text]


def test_r32_only_what_fits_may_come_and_it_goes_back_with_the_decoder_and_ends_when_nothing_can_follow() -> None:
    processor = Grammar.regex("a[bc]d?").bind(BYTES)
    prompt = ids_of("xyz")
    assert allowed(processor, prompt) == {"a"}
    assert allowed(processor, prompt + ids_of("ab")) == {"d", "</s>"}
    assert not processor.is_finished(prompt + ids_of("abd"))  # an ending id is still to come
    assert allowed(processor, prompt + ids_of("abd")) == {"</s>"}
    assert processor.is_finished([*prompt, *ids_of("abd"), EOS])
    assert allowed(processor, prompt + ids_of("a")) == {"b", "c"}
    copy = processor.fork()
    assert allowed(processor, prompt + ids_of("ac")) == {"d", "</s>"}
    assert allowed(copy, prompt + ids_of("a")) == {"b", "c"}
    processor.restart(prompt + ids_of("ac"))
    assert allowed(processor, prompt + ids_of("ac")) == {"a"}
    with pytest.raises(UsageError, match="does not take the token"):
        processor(prompt + ids_of("acx"), np.zeros(300))


def test_without_an_ending_id_the_complete_text_ends_it() -> None:
    processor = Grammar.regex("ab?").bind(TextCodec(small.tokenizer(small.BYTE_LEVEL)))
    assert not processor.is_finished(ids_of("x"))
    assert not processor.is_finished(ids_of("xa"))
    assert processor.is_finished(ids_of("xab"))


def test_a_vocabulary_that_cannot_spell_the_grammar_is_told() -> None:
    vocabulary = {"<unk>": 0, "a": 1, "</s>": 2}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    codec = TextCodec(small.tokenizer(small.BYTE_LEVEL, added_tokens=[], model=model, post_processor=None), eos=[2])
    processor = Grammar.regex("a[qz]").bind(codec)
    processor([0], np.zeros(3))
    with pytest.raises(UsageError, match="no token of this vocabulary"):
        processor([0, 1], np.zeros(3))


def test_a_request_under_a_grammar_on_the_sample(sample: Path) -> None:
    with genai_runner.load(sample) as pipe:
        result = pipe("Once", grammar=Grammar.json_schema(PERSON), temperature=1.0, max_tokens=300, seed=4)
        assert pipe("Once", grammar=Grammar.choices(["Yes", "No"])).text in ("Yes", "No")
    if result.finish_reason == "stop":
        jsonschema.validate(json.loads(result.text), PERSON)


def test_the_loop_and_its_expansion_give_the_same_under_a_grammar(sample: Path) -> None:
    grammar = Grammar.regex("[A-Z][a-z]{1,5}( [a-z]{1,5}){3}\\.")
    texts = []
    for literal in (False, True):
        with genai_runner.load(sample, literal=literal) as pipe:
            result = pipe("Once", grammar=grammar, temperature=1.5, seed=3)
            texts.append((result.text, result.tokens, result.finish_reason))
    assert texts[0] == texts[1]
    assert re.fullmatch("[A-Z][a-z]{1,5}( [a-z]{1,5}){3}\\.", texts[0][0])
    assert texts[0][2] == "stop"


def test_several_answers_each_have_a_grammar_of_their_own(sample: Path) -> None:
    with genai_runner.load(sample) as pipe:
        found = pipe("Once", grammar=Grammar.regex("[a-c]{3} [0-9]{2}"), temperature=2.0, n=3).sequences
    assert len(found) == 3
    assert all(re.fullmatch("[a-c]{3} [0-9]{2}", one.text) for one in found)


def test_a_grammar_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a grammar needs a tokenizer"):
        genai_runner.load(counter(tmp_path / "counter.genai"))(ids=[1], grammar=Grammar.regex("a"))
