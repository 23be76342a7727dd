# SPDX-License-Identifier: Apache-2.0
"""Encoding, decoding, streaming and stop strings, for every kind of tokenizer in the field."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_bundle.errors import GenaiError, UsageError
from genai_runner.text import StopScanner, TextCodec, TextStream, first_stop
from runner import tokenizers_small as small

CODECS = {name: TextCodec(small.tokenizer(decoder)) for name, decoder in small.DECODERS.items()}
SIZE = len(json.loads(small.tokenizer(None))["model"]["vocab"])
WHOLE = ("unknown", "replace across")  # decoders of which only the end makes anything certain
FAMILIES = [
    "all-MiniLM-L6-v2",
    "bert-base-uncased",
    "clip",
    "gpt2",
    "llama-2",
    "llama-3",
    "qwen2.5",
    "smollm2",
    "t5-small",
    "whisper-tiny",
]
MULTILINGUAL = (
    "  Hello,  world!\n\tIt's (don't) a test… Größe ½ Ærøskøbing naïve "
    "Привет мир, 日本語のテキスト。中文，文字 한국어 العربية עברית हिन्दी ไทย "
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b \ufeff 𝔘𝔫𝔦 x²+y³ 12345 </s> <|endoftext|> ##s ▁▁ <0xE6> end "
)


def family(shared: Path, name: str) -> bytes:
    return (shared / "tokenizers" / name / "tokenizer.json").read_bytes()


def id_of(codec: TextCodec, token: str) -> int:
    found: int | None = codec.tokenizer.token_to_id(token)
    assert found is not None
    return found


def check_stream(codec: TextCodec, ids: list[int]) -> None:
    """What came out, and what a flush would add, is the whole decoding after every id."""
    stream, text = codec.stream(), ""
    for count, id_ in enumerate(ids, 1):
        text += stream.push(id_)
        assert text + stream._pieces.rest() == codec.decode(ids[:count])
    assert text + stream.flush() == codec.decode(ids)


def stream_ids(max_size: int = 24) -> st.SearchStrategy[list[int]]:
    some_bytes = st.sampled_from("日é🙂".encode() + b"\xff\x80 ").map(lambda b: [3 + b, 259 + b])
    nasty = some_bytes.flatmap(st.sampled_from)
    return st.lists(st.one_of(st.integers(0, SIZE + 2), st.integers(SIZE - 22, SIZE - 1), nasty), max_size=max_size)


@pytest.mark.parametrize("name", small.DECODERS)
@given(ids=stream_ids())
def test_streaming_joins_to_the_whole_for_every_decoder(name: str, ids: list[int]) -> None:
    check_stream(CODECS[name], ids)


@pytest.mark.parametrize("name", [name for name in small.DECODERS if name not in WHOLE])
def test_text_comes_out_as_soon_as_it_is_certain(name: str) -> None:
    codec = CODECS[name]
    stream = codec.stream()
    for id_ in (id_of(codec, "cat"), id_of(codec, "the"), id_of(codec, "a")):
        assert stream.push(id_)


def test_bytes_wait_for_the_whole_character() -> None:
    codec = CODECS["byte level"]
    stream, alphabet = codec.stream(), small.byte_alphabet()
    assert [stream.push(id_of(codec, alphabet[byte])) for byte in "é日!".encode()] == ["", "é", "", "", "日", "!"]
    stream = CODECS["llama"].stream()
    pieces = [stream.push(3 + byte) for byte in "é日".encode()]
    assert [*pieces, stream.push(id_of(CODECS["llama"], "s"))] == [""] * 5 + ["é日s"]


@pytest.mark.parametrize("name", small.DECODERS)
def test_streaming_is_not_quadratic(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, decoded = CODECS[name], [0]
    whole = codec.decode

    def counting(ids: list[int]) -> str:
        decoded[0] += len(ids)
        return whole(ids)

    monkeypatch.setattr(codec, "decode", counting)
    ids = [id_of(codec, token) for token in ("▁the", "▁", "<0xC3>", "<0xA9>", "s", "é")] * 500
    stream = codec.stream()
    text = "".join(map(stream.push, ids))
    assert decoded[0] <= 5 * len(ids)
    assert text + stream.flush() == whole(ids)


def test_a_stream_of_garbage_comes_out() -> None:
    codec = CODECS["byte level"]
    stream, lead = codec.stream(), id_of(codec, small.byte_alphabet()[0xE0])
    assert "".join(stream.push(lead) for _ in range(20_000)) + stream.flush() == "\ufffd" * 20_000


@pytest.mark.shared
@pytest.mark.parametrize("name", FAMILIES)
def test_streaming_joins_to_the_whole_for_every_family(shared: Path, name: str) -> None:
    codec = TextCodec(family(shared, name))
    check_stream(codec, codec.encode(MULTILINGUAL))
    chance = random.Random(7)
    size = codec.tokenizer.get_vocab_size()
    for _ in range(20):
        check_stream(codec, [chance.randrange(size) for _ in range(60)])


@pytest.mark.shared
def test_streaming_joins_to_the_whole_for_stories260k(shared: Path) -> None:
    codec = TextCodec((shared / "checkpoints/stories260K/tokenizer.json").read_bytes())
    golden = json.loads((shared / "checkpoints/stories260K/golden_greedy.json").read_text())
    check_stream(codec, golden["prompt_ids"] + golden["greedy_ids"])
    check_stream(codec, codec.encode(MULTILINGUAL))
    plain = MULTILINGUAL.replace("</s>", "").replace("▁", "")
    assert codec.decode(codec.encode(plain)) == plain
    assert codec.encode("Once upon a time")[0] == 1


@pytest.mark.shared
def test_every_family_is_among_these(shared: Path) -> None:
    assert sorted(path.parent.name for path in shared.glob("tokenizers/*/tokenizer.json")) == FAMILIES


# Encodings that other implementations published. The same vocabulary stands behind both names.
SWIFT = {
    "gpt2": ("gpt2_encoded_tokens", "distilgpt2"),
    "bert-base-uncased": ("bert_uncased_encoded", "google-bert/bert-base-uncased"),
    "llama-2": ("llama_encoded", "coreml-projects/Llama-2-7b-chat-coreml"),
    "llama-3": ("llama_3.2_encoded", "pcuenq/Llama-3.2-1B-Instruct-tokenizer"),
    "t5-small": ("t5_base_encoded", "t5-base"),
}
LLAMA_CPP = {
    "gpt2": "gpt-2",
    "llama-2": "llama-spm",
    "llama-3": "llama-bpe",
    "qwen2.5": "qwen2",
    "bert-base-uncased": "bert-bge",
}


@pytest.mark.shared
@pytest.mark.parametrize("name", SWIFT)
def test_t3_encodings_are_those_of_swift_transformers(shared: Path, name: str) -> None:
    codec, (text_file, cases_name) = TextCodec(family(shared, name)), SWIFT[name]
    golden = json.loads((shared / f"golden/swift-transformers/{text_file}.json").read_text())
    special = golden["token_ids"] == codec.encode(golden["text"])
    assert codec.encode(golden["text"], add_special=special) == golden["token_ids"]
    cases = json.loads((shared / "golden/swift-transformers/tokenizer_tests.json").read_text())[cases_name]
    for case in cases:
        assert codec.encode(case["input"]) == case["encoded"]["input_ids"], case["input"]


@pytest.mark.shared
@pytest.mark.parametrize("name", LLAMA_CPP)
def test_t3_encodings_are_those_of_llama_cpp(shared: Path, name: str) -> None:
    codec = TextCodec(family(shared, name))
    stem = shared / f"golden/llama.cpp-vocab/ggml-vocab-{LLAMA_CPP[name]}.gguf"
    texts = Path(f"{stem}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    for text, ids in zip(texts, Path(f"{stem}.out").read_text().split("\n"), strict=False):
        assert codec.encode(text, add_special=False) == [int(id_) for id_ in ids.split()], text


@pytest.mark.shared
@pytest.mark.torch
@pytest.mark.parametrize("name", ["qwen2.5", "llama-3", "bert-base-uncased", "t5-small"])
def test_text_is_that_of_transformers(shared: Path, name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    codec = TextCodec(family(shared, name))
    path = str(shared / "tokenizers" / name / "tokenizer.json")
    fast: Any = PreTrainedTokenizerFast
    theirs = fast(tokenizer_file=path, clean_up_tokenization_spaces=False)
    ids = codec.encode(MULTILINGUAL)
    assert ids == theirs.encode(MULTILINGUAL)
    assert codec.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_t5_t7_special_tokens_are_added_unless_told_not_to_and_never_decoded() -> None:
    codec = CODECS["wordpiece"]
    assert codec.encode("the cat") == [1, *codec.encode("the cat", add_special=False)]
    assert codec.decode([1, *codec.encode("the </s> <plain> cat"), 2]) == "the <plain> cat"


def test_t4_truncation_and_padding_of_the_file_are_off() -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    codec = TextCodec(small.tokenizer(None, truncation=truncation, padding=padding))
    assert len(codec.encode("the")) == 2
    assert len(codec.encode("the cat the cat")) == 5


def test_t8_ids_without_a_token_decode_to_nothing() -> None:
    codec = CODECS["llama"]
    assert codec.decode([SIZE + 100, id_of(codec, "cat"), SIZE]) == "cat"
    with pytest.raises(UsageError, match="-1 is no token id"):
        codec.decode([-1])


def test_t6_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(UsageError, match="half a surrogate pair at 1"):
        CODECS["llama"].encode("a\ud83d")


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b'{"model": 1}'])
def test_a_broken_tokenizer_says_so(raw: bytes) -> None:
    with pytest.raises(GenaiError, match="cannot read the tokenizer"):
        TextCodec(raw)


def test_a_crash_inside_the_library_is_an_error_like_any_other() -> None:
    strip = {"type": "Strip", "content": "s", "start": 0, "stop": 1}
    codec = TextCodec(small.tokenizer({"type": "Sequence", "decoders": [{"type": "Fuse"}, strip]}))
    with pytest.raises(GenaiError, match="the tokenizer failed"):
        codec.decode([1])


def test_chat_renders_and_adds_no_special_tokens() -> None:
    template = "{{ bos_token }}{% for m in messages %} {{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %} cat{% endif %}"
    codec = TextCodec(small.tokenizer(None), template, (2,), {"bos_token": "<s>"})
    messages = [{"role": "user", "content": "the"}]
    assert codec.chat(messages) == [1, id_of(codec, "the"), id_of(codec, "cat")]
    assert codec.chat(messages, add_generation_prompt=False) == [1, id_of(codec, "the")]
    with pytest.raises(UsageError, match="no chat template"):
        TextCodec(small.tokenizer(None)).chat(messages)


STOPS = ["at", "s", " t", "é日", "日", "cats", "a ", "🙂"]


def cut(text: str, stop: list[str]) -> str:
    at = first_stop(text, stop)
    return text if at < 0 else text[:at]


@given(
    pieces=st.lists(st.text("abc", max_size=3), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_t9_a_scanner_cuts_before_the_first_stop_string(pieces: list[str], stop: list[str]) -> None:
    scanner, out, seen = StopScanner(stop), "", ""
    for piece in pieces:
        out += scanner.push(piece)
        if scanner.stopped:
            assert out == cut(seen + piece, stop)
            assert scanner.push("more") == scanner.flush() == ""
            return
        seen += piece
        assert first_stop(seen, stop) < 0
        held = seen.removeprefix(out)
        assert out + held == seen
        assert not held or any(one.startswith(held) for one in stop)
    assert out + scanner.flush() == seen


@pytest.mark.parametrize("name", small.DECODERS)
@given(ids=stream_ids(12), stop=st.lists(st.sampled_from(STOPS), max_size=2))
def test_a_stream_stops_when_the_whole_shows_a_stop_string(name: str, ids: list[int], stop: list[str]) -> None:
    codec = CODECS[name]
    stream, out = codec.stream(stop), ""
    for count, id_ in enumerate(ids, 1):
        out += stream.push(id_)
        whole = codec.decode(ids[:count])
        assert stream.stopped == (first_stop(whole, stop) >= 0)
        if stream.stopped:
            assert out + stream.flush() == cut(whole, stop)
            assert stream.push(ids[0]) == ""
            return
    assert out + stream.flush() == codec.decode(ids)


def test_a_stop_string_over_token_borders() -> None:
    codec = CODECS["gemma"]
    stream: TextStream = codec.stream(["ats."])
    pieces = [stream.push(id_of(codec, token)) for token in ("s", "a", "t", "a", "t", "s", "a")]
    assert pieces == ["s", "", "", "at", "", "", "ats"]
    assert stream.flush() == "a"
