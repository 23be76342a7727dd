# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle backends``: versions, devices, and the table of what engines compute."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest

from cli.samples import command
from genai_runner.probe import CASES
from genai_runner.probe import table as probe_table


def test_json_has_every_verdict() -> None:
    done = command("backends", "--backend", "reference", "--json")
    [one] = done.json["backends"]
    assert (one["name"], one["usable"], one["version"], one["devices"]) == (
        "reference",
        True,
        onnx.__version__,
        ["cpu"],
    )
    verdicts = {(case["operator"], case["what"]): case["verdict"] for case in one["cases"]}
    assert len(verdicts) == len(CASES)
    assert verdicts["Resize", "antialias, linear"] == "right"
    assert verdicts["com.microsoft.MatMulNBits", "4 bits"] == "missing"


def test_the_table_shows_what_is_not_right_everywhere() -> None:
    done = command("backends", "--backend", "reference")
    assert done.code == 0
    assert "com.microsoft.MatMulNBits" in done.out
    assert "antialias" not in done.out
    assert "more are right on all of these" in done.out
    everything = command("backends", "--backend", "reference", "--all")
    assert "antialias" in everything.out
    assert len(everything.out.splitlines()) > len(CASES)


def test_all_installed_backends_are_named_with_their_devices() -> None:
    found = {one["name"]: one for one in command("backends", "--json").json["backends"]}
    assert {"onnxruntime", "reference"} <= found.keys()
    assert "scripted" not in found
    assert found["onnxruntime"]["version"] == onnxruntime.__version__
    assert "cpu" in found["onnxruntime"]["devices"]


@pytest.mark.openvino
def test_what_openvino_passes_over_in_silence_is_found() -> None:
    [one] = command("backends", "--backend", "openvino", "--json").json["backends"]
    verdicts = {(case["operator"], case["what"]): case["verdict"] for case in one["cases"]}
    assert {"cpu", "auto"} <= set(one["devices"])
    wrong = {case for case, verdict in verdicts.items() if verdict == "wrong"}
    assert {
        ("Attention", "left_window_size, is_causal"),
        ("Attention", "left_window_size and right_window_size"),
        ("Resize", "antialias, linear"),
        ("Resize", "antialias, cubic"),
        ("*", "int64 constants beyond 32 bits"),
        ("BitShift", "right, of uint8"),
    } <= wrong
    assert verdicts["TensorScatter", "linear"] == "missing"
    for right in ("past and present, is_causal", "attn_mask and is_causal", "grouped heads", "softcap"):
        assert verdicts["Attention", right] == "right"


def test_what_was_found_out_is_not_tried_again_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    command("backends", "--backend", "reference")
    monkeypatch.setattr(probe_table, "_in_worker", lambda *_: pytest.fail("tried again"))
    command("backends", "--backend", "reference")
    tried = []
    monkeypatch.setattr(probe_table, "_in_worker", lambda names, *_: tried.extend(names) or iter(()))
    command("backends", "--backend", "reference", "--refresh", "--json")
    assert len(tried) == len(CASES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "onnxruntim"], "no backend is called"),
        (["--precision", "rough"], "no precision 'rough'"),
        (["--backend", "reference", "--device", "moon"], "runs on the cpu"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    done = command("backends", *arguments)
    assert done.code == 2
    assert message in done.err
