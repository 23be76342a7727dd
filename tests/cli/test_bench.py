# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle bench``: sides in processes of their own, turns, tables, plots, peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.samples import command, talker
from genai_bundle.bench import Side, Times
from genai_bundle.bench.child import Child, check_runs
from genai_bundle.bench.sweep import Found, Row
from genai_bundle.errors import BackendError, UsageError

QUICK = ["--steps", "3", "--rounds", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talker(tmp_path_factory.mktemp("bench") / "talker.genai")


def test_json_has_every_time(bundle: Path) -> None:
    done = command("bench", bundle, "--backend", "onnxruntime", "--contexts", "4,9", *QUICK, "--json")
    found = done.json["files"][str(bundle)]
    assert found["ours"] == ["onnxruntime"]
    assert [(row["context"], row["batch"], len(row["rounds"])) for row in found["rows"]] == [(4, 1, 1), (9, 1, 1)]
    for row in found["rows"]:
        assert [len(one["steps_s"]) for one in row["rounds"]] == [3]
        assert 0 < row["step_s"] < 1
        assert row["prefill_tokens_per_s"] == pytest.approx(row["context"] / row["prefill_s"])
    side = found["sides"]["onnxruntime"]
    assert (side["precision"], side["variant"]) == ("exact", "ort-cpu")
    assert side["peak_rss_bytes"] > 10_000_000
    assert side["peak_private_bytes"] is None or 1_000_000 < side["peak_private_bytes"] <= side["peak_rss_bytes"]
    assert (found["ratios"], found["left_out"], done.err) == ([], [], "")


def test_requests_at_once(sample: Path) -> None:
    arguments = ["--backend", "onnxruntime", "--contexts", "20", "--batch", "1,3", *QUICK]
    done = command("bench", sample, *arguments, "--json")
    found = done.json["files"][str(sample)]
    assert [(row["batch"], len(row["rounds"][0]["steps_s"])) for row in found["rows"]] == [(1, 3), (3, 3)]
    assert found["left_out"] == []
    assert found["rows"][1]["tokens_per_s"] == pytest.approx(3 / found["rows"][1]["step_s"])


def test_contexts_are_those_that_fit(bundle: Path) -> None:
    found = command("bench", bundle, "--backend", "reference", *QUICK).out
    assert " 30 " in found  # half of what 64 positions leave
    assert "resident" in found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--contexts", "61"], "more than the context of 64"),
        (["--contexts", "many"], "whole numbers above 0"),
        (["--batch", "0"], "whole numbers above 0"),
        (["--backend", "abacus"], "no backend is called 'abacus'"),
        (["--peer", "abacus"], "no peer is called 'abacus'"),
        (["--plot", "speed.pdf"], ".svg, .png"),
        (["--precision", "loose"], "precision"),
    ],
)
def test_mistakes_are_one_line_each(bundle: Path, arguments: list[str], words: str) -> None:
    done = command("bench", bundle, *QUICK, *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err


def test_a_plot_is_drawn(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["--backend", "onnxruntime", "--contexts", "4,8", *QUICK, "--plot", tmp_path / "speed.svg"]
    assert command("bench", bundle, *arguments).code == 0
    assert "<svg" in (tmp_path / "speed.svg").read_text(encoding="utf-8")


def test_ratios_are_medians_of_rounds_with_the_best_of_ours() -> None:
    rows = [
        Row("slow", 8, 1, [Times(1, (9, 9)), Times(1, (9, 9)), Times(1, (9, 9))]),
        Row("quick", 8, 1, [Times(2, (1, 1)), Times(2, (2, 2)), Times(2, (4, 4))]),
        Row("peer", 8, 1, [Times(3, (2, 2)), Times(4, (5, 5)), Times(50, (4, 4))]),
    ]
    [ratio] = Found({}, rows, ours=("slow", "quick")).ratios()
    assert (ratio.ours, ratio.peer) == ("quick", "peer")
    assert (ratio.prefill, ratio.decode) == (4, 2)


def test_a_side_that_ends_early_or_fails_is_not_fast(bundle: Path, tmp_path: Path) -> None:
    side = Side("ours", "genai_bundle.bench.ours", bundle, None, 1, backend="onnxruntime")
    with pytest.raises(UsageError, match="3 tokens instead of 4"):
        check_runs(Times(1, (1, 1)), 3, side)
    with Child(side) as child:
        assert len(child.ids(7)) == 7
        with pytest.raises(UsageError):
            child.run([1] * 65, 3, 1)
        child._process.kill()
        with pytest.raises(BackendError, match="ended with code"):
            child.run([1, 2], 3, 1)
    with pytest.raises(UsageError):
        Child(Side("ours", "genai_bundle.bench.ours", tmp_path / "absent.genai", None, 1, backend="onnxruntime"))


@pytest.mark.peers
def test_peers_on_the_same_weights(sample: Path, tmp_path: Path) -> None:
    peers = ["--peer", "onnxruntime-genai", "--peer", "openvino-genai", "--folder", tmp_path]
    done = command("bench", sample, "--backend", "onnxruntime", *peers, "--contexts", "8", *QUICK, "--json")
    found = done.json["files"][str(sample)]
    assert list(found["sides"]) == ["onnxruntime", "onnxruntime-genai", "openvino-genai"]
    assert {side["precision"] for side in found["sides"].values()} == {"exact"}
    assert [ratio["peer"] for ratio in found["ratios"]] == ["onnxruntime-genai", "openvino-genai"]
    assert all(0 < ratio["decode"] < 1000 for ratio in found["ratios"])
    assert len(list(tmp_path.iterdir())) == 2
