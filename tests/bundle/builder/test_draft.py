# SPDX-License-Identifier: Apache-2.0
"""A draft beside a model: both compute what transformers computes, and the model's tokens stay what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.samples import command, doubler, talker
from conftest import optional

pytestmark = pytest.mark.torch
torch = optional("torch", "torch")

from genai_bundle.builder.draft import check_tokenizers, join  # noqa: E402
from genai_bundle.bundle import open_bundle  # noqa: E402
from genai_bundle.errors import SourceError, UsageError  # noqa: E402
from genai_bundle.exports import choose  # noqa: E402
from genai_bundle.manifest import Generate  # noqa: E402
from genai_runner import load  # noqa: E402


def test_the_generate_has_a_draft_with_graphs_states_and_shards_of_its_own(drafted: Path) -> None:
    with open_bundle(drafted / "both.genai") as bundle:
        bundle.verify()
        manifest = bundle.manifest
    step = manifest.steps[-1]
    assert isinstance(step, Generate)
    assert step.draft is not None
    [run] = step.draft.do
    assert (run.target, run.inputs["input_ids"], step.draft.logits) == ("draft", "ids", "logits")
    drafted = {name for name, state in manifest.state.items() if state.graph == "draft"}
    assert drafted
    assert all(name.startswith("draft_") for name in drafted)
    assert {value.split(".")[0] for value in run.inputs.values() if "." in value} <= drafted
    assert [one.name for one in manifest.graphs["draft"].variants] == ["ort-cpu"]
    assert {"draft.onnx", "draft.ort-cpu.onnx", "weights/draft-00.bin", "weights/decoder-00.bin"} <= set(manifest.files)
    assert manifest.source["draft"]["name"] == "draft"
    assert manifest.source["draft"]["proof"]["reference"] == manifest.source["proof"]["reference"]


@pytest.mark.parametrize("variant", ["portable", "ort-cpu"])
def test_both_graphs_compute_what_transformers_computes(drafted: Path, variant: str) -> None:
    from transformers import AutoModelForCausalLM

    ids = [1, 70, 90, 110, 45, 60]
    with load(drafted / "both.genai", threads=1, variant=variant) as pipe:
        for name, graph in (("model", "decoder"), ("draft", "draft")):
            with torch.no_grad():
                model = AutoModelForCausalLM.from_pretrained(drafted / name)
                wanted = model(torch.tensor([ids])).logits[0, -1].numpy()
            entry = pipe.manifest.graphs[graph]
            file = next((one.file for one in entry.variants if one.name == variant), entry.file)
            feeds = _feeds(pipe.bundle.ports(file).inputs, ids)
            found = np.asarray(pipe.graph(graph).run(feeds, ["logits"])["logits"])[0, -1]
            np.testing.assert_allclose(found, wanted, atol=2e-4)


def _feeds(ports: Any, ids: list[int]) -> dict[str, Any]:
    count = len(ids)
    known = {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count, dtype=np.int64)[None],
        "seqlens_k": np.array([count - 1], np.int32),
        "total_sequence_length": np.array(count, np.int32),
        "num_logits": np.array(1, np.int64),
    }
    empty = {
        name: np.zeros([dim if isinstance(dim, int) else (1, 0)[axis == 2] for axis, dim in enumerate(port.dims)], "f4")
        for name, port in ports.items()
        if name not in known
    }
    return {name: value for name, value in known.items() if name in ports} | empty


def test_the_model_s_tokens_are_what_they_were(drafted: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(drafted / "model")
    with load(drafted / "both.genai", threads=1) as both:
        ids = torch.tensor([both.encode("A dog")])
        greedy = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)[0]
        assert both("A dog", max_tokens=20, temperature=0).tokens == greedy[ids.shape[1] :].tolist()
        guessed = both("A dog", max_tokens=20, temperature=0, speculate="draft")
        assert guessed.tokens == greedy[ids.shape[1] :].tolist()
        assert guessed.metrics.spec_decode_num_draft_tokens > 0
    shown = command("inspect", drafted / "both.genai").out
    assert "draft: logits guesses tokens" in shown
    with open_bundle(drafted / "both.genai") as bundle:
        lost = choose("ort-genai").plan(bundle, "auto").lost
    assert any(line.startswith("generate.draft") for line in lost)


def test_another_tokenizer_is_refused_before_anything_is_built(drafted: Path, tmp_path: Path) -> None:
    raw = (drafted / "model" / "tokenizer.json").read_bytes()
    check_tokenizers(raw, json.dumps(json.loads(raw)).encode())
    changed = json.loads(raw)
    vocabulary = changed["model"]["vocab"]
    vocabulary["!"], vocabulary["a"] = vocabulary["a"], vocabulary["!"]
    with pytest.raises(SourceError, match=r"another tokenizer: '!' has the id \d+ in the model, and the id \d+ in"):
        check_tokenizers(raw, json.dumps(changed).encode())
    changed = json.loads(raw)
    changed["pre_tokenizer"]["add_prefix_space"] = True
    with pytest.raises(SourceError, match="differ in their 'pre_tokenizer'"):
        check_tokenizers(raw, json.dumps(changed).encode())
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "tokenizer.json").write_text(json.dumps(changed))
    done = command("build", drafted / "model", "--draft", tmp_path / "draft", "-o", tmp_path / "x.genai")
    assert done.code != 0
    assert "another tokenizer" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]


def test_what_does_not_continue_a_text_is_no_draft(drafted: Path, tmp_path: Path) -> None:
    other = doubler(tmp_path / "doubler.genai")
    both, target = drafted / "both.genai", tmp_path / "x.genai"
    no_text = pytest.raises(UsageError, match="'doubler' has no tokenizer")
    with open_bundle(both) as model, open_bundle(other) as draft, no_text:
        join(model, draft, target)
    other_text = pytest.raises(SourceError, match="another tokenizer")
    with open_bundle(both) as model, open_bundle(talker(tmp_path / "talker.genai")) as talks, other_text:
        join(model, talks, target)
    assert not target.exists()
