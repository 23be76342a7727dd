# SPDX-License-Identifier: Apache-2.0
"""Folders that mobius itself writes for onnx-genai: imported, they say what transformers says of the checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import optional

pytestmark = pytest.mark.torch
torch = optional("torch", "torch")
optional("mobius", "torch")

from families import BASE, EXPERTS, save, write_text_files  # noqa: E402
from genai_bundle.builder.build import build  # noqa: E402
from genai_bundle.builder.options import BuildOptions  # noqa: E402
from genai_bundle.bundle import open_bundle  # noqa: E402
from genai_bundle.errors import SourceError  # noqa: E402
from genai_bundle.importers import inference_metadata  # noqa: E402
from genai_runner import load  # noqa: E402

FILE = inference_metadata.FILE

LINEAR = {"num_hidden_layers": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
          "linear_value_head_dim": 8, "shared_expert_intermediate_size": 24, "head_dim": 16, **EXPERTS}  # fmt: skip

MODELS = {"Llama": {}, "Qwen3Next": LINEAR}
"""A cache that grows, and one beside states that are replaced."""


@pytest.fixture(scope="module", params=MODELS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random checkpoint, and the folder that mobius makes of it."""
    import transformers
    from mobius.__main__ import main

    source = tmp_path_factory.mktemp(request.param) / "checkpoint"
    config = getattr(transformers, f"{request.param}Config")(**(BASE | MODELS[request.param]))
    save(transformers.AutoModelForCausalLM.from_config(config), source)
    write_text_files(source)
    target = source.with_name("folder")
    main(["build", "--config", str(source), "--runtime", "onnx-genai", str(target)])
    return source, target


def test_tokens_are_those_of_the_checkpoint(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, folder = folders
    told: list[str] = []
    build(folder, tmp_path / "out.genai", BuildOptions(), told.append)
    assert told[0] == "this is a folder with inference_metadata.yaml"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(source)("Once upon a time", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]
    with load(tmp_path / "out.genai") as pipeline:
        assert pipeline("Once upon a time", max_tokens=16).tokens == expected.tolist()
    with open_bundle(tmp_path / "out.genai") as bundle:
        updates = {name: state.update for name, state in bundle.manifest.state.items()}
    replaced = {"state": "replace"} if "Qwen3Next" in str(source) else {}
    assert updates == {"kv": "append", **replaced}


Change = Callable[[dict[str, Any]], None]

CHANGES: Mapping[str, tuple[Change, str]] = {
    "a window": (lambda d: d["model"]["attention"].update(sliding_window=16), "is 16, but the graph attends to all of"),
    "a role": (lambda d: d["model"]["io"].update(position_ids_input=None), "'position_ids' has no role"),
    "a port": (lambda d: d["model"]["io"]["inputs"].pop(0), r"io\.inputs: names the ports"),
    "pairs": (lambda d: d["model"]["io"]["kv_outputs"].reverse(), "the ports that it pairs are not those"),
    "an update": (lambda d: d["model"]["io"].update(kv_update="ring"), r"not understood.*io\.kv_update = 'ring'"),
    "a capability": (lambda d: d["required_capabilities"].append("speculation"), r"not understood.*required_capab"),
    "a key": (lambda d: d["kv_cache"].update(page_size=16), r"not understood.*kv_cache\.page_size = 16"),
    "components": (lambda d: d.update(pipeline={"models": {}}), "describes several graphs"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("folders", ["Llama"], indirect=True)
def test_what_is_not_understood_stops_the_import(folders: tuple[Path, Path], change: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(folders[1], folder)
    document = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
    CHANGES[change][0](document)
    (folder / FILE).write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(SourceError, match=CHANGES[change][1]) as caught:
        build(folder, tmp_path / "out.genai")
    assert FILE in str(caught.value)
    assert not (tmp_path / "out.genai").exists()


def test_a_file_that_is_no_metadata(tmp_path: Path) -> None:
    for content, message in ((": [", "is not YAML"), ("- a", "is not a mapping")):
        (tmp_path / FILE).write_text(content, encoding="utf-8")
        with pytest.raises(SourceError, match=message):
            build(tmp_path, tmp_path / "out.genai")
