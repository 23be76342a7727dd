# SPDX-License-Identifier: Apache-2.0
"""Every kind of pipeline goes into a plain folder; onnxruntime-genai gets those that it can run, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bundle.exports.peer import exported
from genai_bundle.bundle import open_bundle
from genai_bundle.errors import UsageError

Built = Callable[[str], Path]

EXAMPLES = sorted(path.stem for path in (Path(__file__).parent / "examples").glob("*.yaml"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_plain_folder_takes_any_bundle(name: str, built: Built, tmp_path: Path) -> None:
    folder = exported(built(f"examples/{name}"), tmp_path / "out", "folder")
    with open_bundle(built(f"examples/{name}")) as bundle:
        graphs = list(bundle.manifest.graphs)
    assert sorted(path.stem for path in folder.glob("*.onnx")) == sorted(graphs)
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(str(path))
        onnx.load(path)
    text = (folder / "README.md").read_text()
    assert all(f"### {graph}.onnx" in text for graph in graphs)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("whisper", "fills the cross cache"),
        ("speech", "cannot run|not just a prompt"),
        ("recurrent", "kept by 'replace'"),
        ("scatter", "does more than run one graph"),
        ("text-to-image", "runs 'text_encoder' first"),
        ("vision-language", "not just a prompt"),
    ],
)
def test_the_peer_gets_only_what_it_can_run(name: str, words: str, built: Built, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        exported(built(f"examples/{name}"), tmp_path / "out", "ort-genai")
    assert "--to folder" in str(caught.value)
    assert not (tmp_path / "out").exists()
