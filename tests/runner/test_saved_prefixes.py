# SPDX-License-Identifier: Apache-2.0
"""What `prefill` keeps saves computing and changes no token; what does not fit is never used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genai_runner
from cli.samples import talker
from conftest import BACKENDS, SAMPLE
from genai_bundle.errors import GenaiError, UsageError
from genai_runner import saved_prefixes
from genai_runner.prefill import BEHIND, common, prefill_prompt, prefill_system
from genai_runner.text import TextCodec
from runner.test_chat_templates import templates
from runner.tiny import counter

SYSTEM = "You are a bear who lives in the big green forest and likes honey. Answer briefly."
TEXT = "Once upon a time there was a little girl who had a red ball. She liked to"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "prefixes"

    def made(_: str) -> Path:
        folder.mkdir(exist_ok=True)
        return folder

    monkeypatch.setattr(saved_prefixes, "cache_folder", made)  # what engines were found to compute stays known
    return folder


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def hits(result: Any) -> int:
    found: int = result.metrics.prefix_cache_hits
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("variant", "memory"), [("auto", 0), ("portable", 64 << 20)])
def test_tokens_are_those_without(backend: str, variant: str, memory: int) -> None:
    with genai_runner.load(SAMPLE, backend, variant=variant, saved_prefixes=False) as plain:
        expected = [plain(messages=said(text), max_tokens=8).tokens for text in ("Who are you?", "Hello.")]
        expected.append(plain(TEXT + " play.", max_tokens=8).tokens)
    with genai_runner.load(SAMPLE, backend, variant=variant) as pipe:
        system, text = prefill_system(pipe, SYSTEM), prefill_prompt(pipe, TEXT)
    with genai_runner.load(SAMPLE, backend, variant=variant, prefix_cache=memory) as pipe:
        found = [pipe(messages=said(text), max_tokens=8) for text in ("Who are you?", "Hello.")]
        found.append(pipe(TEXT + " play.", max_tokens=8))
        assert [one.tokens for one in found] == expected
        assert [hits(one) for one in found][0::2] == [len(system.ids), len(text.ids)]
        assert hits(found[1]) >= len(system.ids)
        assert hits(pipe("The dog", max_tokens=1)) == 0


def test_a_prompt_that_ends_within_a_prefix() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        prefix = prefill_prompt(pipe, TEXT)
        found = pipe(TEXT[:30], max_tokens=6)
        assert 0 < hits(found) < len(prefix.ids)
    with genai_runner.load(SAMPLE, saved_prefixes=False) as plain:
        assert plain(TEXT[:30], max_tokens=6).tokens == found.tokens


def test_r35_nothing_of_another_bundle_engine_or_variant_is_used(tmp_path: Path) -> None:
    with genai_runner.load(SAMPLE) as pipe:
        made = prefill_prompt(pipe, TEXT)
    for backend, variant in (("reference", "auto"), ("onnxruntime", "portable")):
        with genai_runner.load(SAMPLE, backend, variant=variant) as pipe:
            assert pipe.saved_prefixes is not None
            own = pipe.saved_prefixes._folder()
            assert own is not None
            assert own != made.file.parent
            assert pipe.saved_prefixes._look() == []
            own.mkdir()
            shutil.copy(made.file, own)  # even a file that is put where its own would be
            assert hits(pipe(TEXT, max_tokens=1)) == 0
    with genai_runner.load(counter(tmp_path / "counter.genai")) as pipe:
        assert hits(pipe(np.array([[*made.ids[:3], 1]]), max_tokens=1)) == 0


def test_without_any_nothing_is_read(folder: Path) -> None:
    with genai_runner.load(SAMPLE) as pipe:
        pipe(TEXT, max_tokens=1)
    assert list(folder.iterdir()) == []


def damaged(file: Path) -> Iterator[str]:
    """Ways in which a file may be none; each is there when its name comes."""
    data = file.read_bytes()
    with np.load(file) as opened:
        arrays: dict[str, Any] = dict(opened)
    place = data.index(b"0.npy") + 300
    whole = {"cut": data[: len(data) // 2], "text": b"PK is no beginning", "empty": b""}
    whole["flipped"] = data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]
    for name, content in whole.items():
        file.write_bytes(content)
        yield name
    parts = {"pickle": {"ids": np.array([object()])}, "wide": {"0": np.zeros((2, 3, 4), np.float32)}}
    parts["foreign"] = {"about": np.frombuffer(json.dumps([1, 2]).encode(), np.uint8)}
    for name, part in parts.items():
        np.savez(file, **{**arrays, **part})
        yield name
    del arrays["0"]
    np.savez(file, **arrays)
    yield "short"


def test_r35_a_damaged_file_is_left_out_with_a_warning() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        expected = pipe(TEXT, max_tokens=4).tokens
        made = prefill_prompt(pipe, TEXT)
        assert hits(pipe(TEXT, max_tokens=4)) > 0
    for how in damaged(made.file):
        with genai_runner.load(SAMPLE) as pipe:
            with pytest.warns(UserWarning, match="is no saved prefix"):
                found = pipe(TEXT, max_tokens=4)
            assert (how, found.tokens, hits(found)) == (how, expected, 0)
            assert hits(pipe(TEXT, max_tokens=4)) == 0  # and says it once


def test_adapters_are_told_apart() -> None:
    with genai_runner.load(SAMPLE) as pipe:
        saved = pipe.saved_prefixes
        assert saved is not None
        made = prefill_prompt(pipe, TEXT)
        with np.load(made.file) as opened:
            arrays = {name: opened[str(number)] for number, name in enumerate(made.names)}
        saved_prefixes.remove(made)
        saved.save("pirate", made.ids, arrays, "name", "text")
        assert hits(pipe(TEXT, max_tokens=1)) == 0
        assert [one.adapter for one in saved_prefixes.every()] == ["pirate"]


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with genai_runner.load(counter(tmp_path / "counter.genai")) as pipe:
        with pytest.raises(UsageError, match="takes no text"):
            prefill_prompt(pipe, TEXT)
        with pytest.raises(UsageError, match="takes no messages"):
            prefill_system(pipe, SYSTEM)
    with genai_runner.load(talker(tmp_path / "talker.genai"), saved_prefixes=False) as pipe:
        with pytest.raises(UsageError, match="takes no tools"):
            prefill_system(pipe, SYSTEM, tools=[])
        with pytest.raises(UsageError, match="cannot be kept in files"):
            prefill_prompt(pipe, "one two")
    ring = {
        "graph": "decoder",
        "ports": {"p": "q"},
        "axis": 2,
        "tokens": "ids",
        "update": "ring",
        "window": 8,
        "capacity": 16,
    }
    changed = talker(tmp_path / "ring.genai", state={"kv": ring}, tests=[])
    with genai_runner.load(changed) as pipe, pytest.raises(UsageError, match="cannot be kept for other prompts"):
        prefill_prompt(pipe, "one two ")


@pytest.mark.shared
def test_the_prefix_of_every_template_begins_every_rendering(shared: Path) -> None:
    with genai_runner.load(SAMPLE) as pipe:
        codec = pipe._text
        worked = 0
        for template in templates(shared).values():
            special = {"bos_token": "<s>", "eos_token": "</s>"}
            one = TextCodec(codec.tokenizer.to_str().encode(), template, codec.eos, special)
            try:
                ids = common([one.chat(said(text)) for text in BEHIND])
            except GenaiError:  # it takes no system message, or lacks a variable
                continue
            for text in ("Who are you?", "  é", "(1)", "\nNo"):
                assert one.chat(said(text))[: len(ids)] == ids
            worked += SYSTEM.split()[-1] in codec.decode(ids) or len(ids) > 30
    assert worked > 15


def test_common() -> None:
    assert common([[1, 2, 3], [1, 2], [1, 2, 4]]) == [1, 2]
    assert common([[1], [2]]) == []
