# SPDX-License-Identifier: Apache-2.0
"""Saved prefixes inside a bundle save computing, change no token and nothing else of the bundle; none is used that was
computed in another way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genai_runner
from cli.samples import command
from conftest import BACKENDS, SAMPLE
from genai_bundle.builder.prefixes import Data, prefix_name, with_prefix, without_prefixes
from genai_bundle.bundle import open_bundle
from genai_bundle.cli.copying import checked_parts
from genai_bundle.cli.prefill_inside import write
from genai_bundle.errors import InvalidBundle
from genai_bundle.writer import write_bundle
from genai_runner.prefill import check, compute, key_of
from genai_runner.processor import processor
from genai_runner.saved_prefixes import Prefix

SYSTEM = "You are a bear who lives in the big green forest and likes honey. Answer briefly."
TEXT = "Once upon a time there was a little girl who had a red ball. She liked to"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai_runner.saved_prefixes, "cache_folder", lambda _: None)  # nothing of the user's


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def put(source: Path, target: Path, of: Mapping[str, Any], backend: str = "onnxruntime", **how: Any) -> Prefix:
    with genai_runner.load(source, backend, **how) as pipe:
        return write(source, target, compute(pipe, of), key_of(pipe).key, overwrite=True)


def counted(result: Any) -> tuple[list[int], int]:
    """The tokens, and how many tokens of the prompt were computed for them."""
    return result.tokens, result.metrics.prefill_tokens


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_are_those_without(backend: str, tmp_path: Path) -> None:
    same_tokens(backend, "auto", tmp_path)


def test_tokens_are_those_without_in_appended_states(tmp_path: Path) -> None:
    same_tokens("onnxruntime", "portable", tmp_path)


def same_tokens(backend: str, variant: str, tmp_path: Path) -> None:
    file = tmp_path / "with.genai"
    system = put(SAMPLE, file, {"system": SYSTEM}, backend, variant=variant)
    text = put(file, file, {"prompt": TEXT}, backend, variant=variant)
    asked: list[dict[str, Any]] = [{"messages": said("Who are you?")}, {"prompt": TEXT + " play."}, {"prompt": "Hello"}]
    with genai_runner.load(SAMPLE, backend, variant=variant) as plain:
        expected = [counted(plain(**one, max_tokens=4)) for one in asked]
    with genai_runner.load(file, backend, variant=variant) as pipe:
        found = [counted(pipe(**one, max_tokens=4)) for one in asked]
        assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
        spared = [without - now for (_, without), (_, now) in zip(expected, found, strict=True)]
        assert spared == [len(system.ids), len(text.ids), 0]
    with genai_runner.load(file, backend, variant=variant, saved_prefixes=False) as pipe:
        assert [counted(pipe(**one, max_tokens=4)) for one in asked] == expected


def test_states_are_used_where_they_lie(tmp_path: Path) -> None:
    file = tmp_path / "with.genai"
    put(SAMPLE, file, {"prompt": TEXT}, variant="portable")
    with genai_runner.load(file, variant="portable") as pipe:
        fed = pipe.generator(TEXT + " play.").body.states[0].feeds(0)
        ((file_of_states,),) = [prefix.files for prefix in pipe.manifest.prefixes.values()]
        place = np.frombuffer(pipe.bundle.view(file_of_states), np.uint8)
        assert all(np.shares_memory(place, np.asarray(array)) for array in fed.values())
        assert counted(pipe(TEXT[:30], max_tokens=2))[1] == 1  # the first positions serve as well


def test_r40_nothing_of_another_engine_variant_processor_or_adapter_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "with.genai"
    made = put(SAMPLE, file, {"prompt": TEXT})
    asked = TEXT + " play."

    def hits(**how: Any) -> int:
        with genai_runner.load(file, **how) as pipe:
            found: int = pipe(asked, max_tokens=1).metrics.prefix_cache_hits
            return found

    assert hits() == len(made.ids)
    assert hits(variant="portable") == hits(backend="reference") == hits(precision="fast") == hits(literal=True) == 0
    monkeypatch.setattr(genai_runner.loading, "processor", lambda: processor() + " abacus")
    assert hits() == 0
    monkeypatch.undo()
    monkeypatch.setattr(genai_runner.backends.onnxruntime.BACKEND, "version", "0.1", raising=False)
    assert hits() == 0


def test_the_bundle_stays_what_it_is(tmp_path: Path) -> None:
    file, again = tmp_path / "with.genai", tmp_path / "again.genai"
    first = put(SAMPLE, file, {"prompt": TEXT})
    second = put(file, file, {"system": SYSTEM}, variant="portable")
    third = put(file, again, {"system": SYSTEM}, variant="portable")
    assert second.id == third.id
    assert file.read_bytes() == again.read_bytes()
    with open_bundle(SAMPLE) as plain, open_bundle(file) as bundle:
        assert bundle.id != plain.id
        assert bundle.base_id == plain.base_id == plain.id
        assert list(bundle.manifest.prefixes) == sorted([first.id, second.id])
        assert all(bundle.read(path) == plain.read(path) for path in plain.members if path != "manifest.json")
        manifest, members = checked_parts(bundle)
        write_bundle(again, *without_prefixes((manifest, {**members}), [first.id, second.id]), overwrite=True)
    assert again.read_bytes() == SAMPLE.read_bytes()


def changed(source: Path, target: Path, **keys: Any) -> None:
    """A copy with a change of the manifest."""
    with open_bundle(source) as bundle:
        manifest, members = checked_parts(bundle)
        write_bundle(target, {**manifest, **keys}, members)


def test_p36_states_of_changed_bundles_are_refused(tmp_path: Path) -> None:
    file, other = tmp_path / "with.genai", tmp_path / "other.genai"
    put(SAMPLE, file, {"prompt": TEXT})
    changed(file, other, description="another one")
    with pytest.raises(InvalidBundle, match="computed from") as caught:
        open_bundle(other)
    assert caught.value.rule == "P36"


def stored(array: Any) -> Data:
    kinds = {"float32": "f32", "float16": "f16"}
    return Data(kinds[array.dtype.name], array.shape, array.nbytes, array.tobytes)


def test_r41_ids_and_states_are_computed_again(tmp_path: Path) -> None:
    file = tmp_path / "with.genai"
    with genai_runner.load(SAMPLE) as pipe:
        key, made = key_of(pipe).key, compute(pipe, {"prompt": TEXT})
    last = {place: array.copy() for place, array in made.arrays.items()}
    np.moveaxis(next(iter(last.values())), 2, 0)[-1] += 0.1
    cases: list[tuple[list[int], Mapping[Any, Any], str]] = [
        (made.ids, made.arrays, ""),
        (made.ids, last, "differs by 0.1"),
        ([*made.ids[:-1], 5], made.arrays, "ids now"),
    ]
    for ids, arrays, wrong in cases:
        with open_bundle(SAMPLE) as bundle:
            manifest, members = checked_parts(bundle)
            name = prefix_name(key, None, ids)
            entry = {"ids": ids, "of": made.of, "computed": key}
            parts = with_prefix((manifest, {**members}), name, entry, {p: stored(a) for p, a in arrays.items()})
            write_bundle(file, *parts, overwrite=True)
        with genai_runner.load(file) as pipe:
            (prefix,) = key_of(pipe).packed
            assert wrong in check(pipe, prefix, made.of)[1]
            assert bool(wrong) == bool(check(pipe, prefix, made.of)[1])
        done = command("verify", file, "--json")
        (line,) = [one for one in done.json["checks"] if one["check"] == f"prefix {name}"]
        assert (done.code, line["status"]) == ((4, "FAILED") if wrong else (0, "ok"))


def test_adapters_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "with.genai"
    with genai_runner.load(SAMPLE) as pipe:
        key, made = key_of(pipe).key, compute(pipe, {"prompt": TEXT})
    with open_bundle(SAMPLE) as bundle:
        manifest, members = checked_parts(bundle)
        entry = {"ids": made.ids, "of": made.of, "computed": key, "adapter": "pirate"}
        parts = with_prefix((manifest, {**members}), "x", entry, {p: stored(a) for p, a in made.arrays.items()})
        write_bundle(file, *parts)
    with pytest.raises(InvalidBundle, match="no adapter named 'pirate'"):
        open_bundle(file)


def test_inspect_shows_them_and_export_leaves_them_out(tmp_path: Path) -> None:
    file = tmp_path / "with.genai"
    made = put(SAMPLE, file, {"system": SYSTEM})
    facts = command("inspect", file, "--json").json["prefixes"][made.id]
    assert (facts["tokens"], facts["size"], facts["of"]) == (len(made.ids), made.nbytes, {"system": SYSTEM})
    assert made.id in command("inspect", file).out
    done = command("export", "--to", "folder", file, "-o", tmp_path / "folder")
    assert (done.code, "prefixes: 1 have no place" in done.err) == (0, True)
