# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's head as the draft of its bundle: the guesses are transformers', and the tokens what they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bundle.builder.headed import FIRST, deepseek, mellum
from cli.samples import command
from conftest import optional

pytestmark = pytest.mark.torch
torch = optional("torch", "torch")

from families import causal  # noqa: E402
from genai_bundle.builder import from_checkpoint  # noqa: E402
from genai_bundle.builder.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from genai_bundle.builder.exporters import HeadError  # noqa: E402
from genai_bundle.builder.options import BuildOptions  # noqa: E402
from genai_bundle.builder.report import Report  # noqa: E402
from genai_bundle.bundle import open_bundle  # noqa: E402
from genai_bundle.errors import SourceError, UsageError  # noqa: E402
from genai_bundle.manifest import Generate  # noqa: E402
from genai_runner import load  # noqa: E402
from genai_runner.speculation import Speculation  # noqa: E402

CYCLE = "".join(chr(FIRST + 30 + 7 * place % 26) for place in range(12))  # ids of a byte begin with "!", which is 3
PROMPTS = (CYCLE, "A dog", "Hello there, who are you?")
SMALL = {
    "num_hidden_layers": 1, "layer_types": ["full_attention"], "mlp_layer_types": ["dense"],
    "mtp_mlp_layer_types": ["dense"], "mtp_layer_types": ["full_attention"],
}  # fmt: skip


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, `model`, that was taught a cycle, and its bundle."""
    made = tmp_path_factory.mktemp("headed")
    mellum(made / "model", steps=60, **SMALL)
    done = command("build", made / "model", "-o", made / "model.genai", "--force")
    assert done.code == 0, done.err
    assert "draft" in done.out
    return made


def test_the_head_is_a_draft_that_shares_weights_with_the_model(headed: Path) -> None:
    with open_bundle(headed / "model.genai") as bundle:
        bundle.verify()
        manifest = bundle.manifest
        places = {
            name: {tensor.name: tuple((item.key, item.value) for item in tensor.external_data)
                   for tensor in onnx.load_from_string(bundle.read(f"{name}.onnx")).graph.initializer}
            for name in ("decoder", "head", "decoder.ort-cpu", "head.ort-cpu")
        }  # fmt: skip
    step = manifest.steps[-1]
    assert isinstance(step, Generate)
    assert step.draft is not None
    assert step.draft.carry == {"hidden_before": ("hidden", "own_hidden")}
    for shared in ("model.embed_tokens.weight", "lm_head.weight"):
        assert len({found[shared] for found in places.values()}) == 1
        assert places["head"][shared]
    proof = manifest.source["draft"]["proof"]
    assert proof["reference"] == manifest.source["proof"]["reference"]
    assert "dropped" not in manifest.source


def test_it_guesses_what_transformers_guesses(headed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.generation import candidate_generator

    theirs: dict[tuple[int, ...], int] = {}
    ours: dict[tuple[int, ...], int] = {}
    ask = candidate_generator.MTPCandidateGenerator.get_candidates

    def watch(self: Any, ids: Any, *arguments: Any, **named: Any) -> Any:
        found = ask(self, ids, *arguments, **named)
        if found[0].shape[1] > ids.shape[1]:
            theirs[tuple(ids[0].tolist())] = int(found[0][0, ids.shape[1]])
        return found

    def propose(self: Speculation, tokens: list[int], most: int, vocabulary: int) -> list[int]:
        known = self.drafter.rate(tokens) is not None
        guesses = self.drafter.guess(tokens, min(most, 3)) if known and most > 0 else []
        if guesses:
            ours[tuple(tokens)] = guesses[0]
        self._width = 1 + len(guesses)
        return guesses

    monkeypatch.setattr(candidate_generator.MTPCandidateGenerator, "get_candidates", watch)
    monkeypatch.setattr(Speculation, "propose", propose)
    model = AutoModelForCausalLM.from_pretrained(headed / "model")
    with load(headed / "model.genai", threads=1) as pipe:
        for prompt in PROMPTS:
            ids = torch.tensor([pipe.encode(prompt)])
            wanted = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30, use_mtp=True
            )
            found = pipe(prompt, max_tokens=30, temperature=0, speculate="draft").tokens
            assert found == wanted[0, ids.shape[1] :].tolist()
    both = theirs.keys() & ours.keys()
    assert len(both) > 20
    assert {text: ours[text] for text in both} == {text: theirs[text] for text in both}
    assert any(len(text) > 20 for text in both)


@pytest.mark.parametrize("backend", ["onnxruntime", "reference"])  # the runner's tests have a head on each
def test_tokens_are_the_same_with_and_without(headed: Path, backend: str) -> None:
    accepted = 0
    with load(headed / "model.genai", backend, threads=1) as pipe:
        for options in ({"temperature": 0}, {"temperature": 0.8, "seed": 3}):
            found = [
                pipe(CYCLE, max_tokens=40, ignore_eos=True, speculate=mode, **options)
                for mode in ("none", "lookup", "draft")
            ]
            assert found[0].tokens == found[1].tokens == found[2].tokens
            accepted += found[2].metrics.spec_decode_num_accepted_tokens
    assert accepted > 0


def test_turns_as_long_as_a_check_of_guesses(
    headed: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run over four ids gives the logits of one position of a turn, and those of four where it checks guesses."""

    def propose(self: Speculation, tokens: list[int], most: int, vocabulary: int) -> list[int]:
        known = most >= 3 and self.drafter.rate(tokens) is not None
        guesses = self.drafter.guess(tokens, 3) if known else []
        self._width = 1 + len(guesses)
        return guesses

    monkeypatch.setattr(Speculation, "propose", propose)
    with load(headed / "model.genai", threads=1) as pipe:
        turn, answers = pipe.encode("bip")[:3], []
        for mode in ("none", "draft"):
            generator = pipe.generator(CYCLE, speculate=mode, temperature=0, max_tokens=15, ignore_eos=True)
            for _ in range(2):
                answers.append([generator.generate_next_token() for _ in range(15)])
                assert (generator.metrics.spec_decode_num_accepted_tokens > 0) is (mode == "draft")
                generator.append_tokens(turn)
    assert answers[:2] == answers[2:]
    assert "INVALID_ARGUMENT" not in capfd.readouterr().err


def test_a_head_that_is_not_right_is_no_reason_not_to_build(
    headed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genai_bundle.builder.prove_head import prove_head
    from genai_bundle.builder.reference_head import ask_head

    checkpoint = read_checkpoint(headed / "model")
    [answer] = ask_head(checkpoint, [[5, 70, 90, 110, 45]])
    assert prove_head(headed / "model.genai", [answer])["portable"] < 1e-4
    off = replace(answer, guessed=answer.guessed + np.float32(0.01))
    with pytest.raises(HeadError, match=r"behind its own guesses: differs from transformers' by 0\.01"):
        prove_head(headed / "model.genai", [off])
    asked = []

    def build(one: Checkpoint, *_: Any) -> str:
        asked.append(one.heads)
        if one.heads:
            raise HeadError("is not right")
        return "id"

    monkeypatch.setattr(from_checkpoint, "_build", build)
    report = Report()
    assert from_checkpoint.build_from(checkpoint, tmp_path / "x.genai", BuildOptions(), report) == "id"
    assert asked == [True, False]
    assert report.notes == ["built without the checkpoint's head for multi-token prediction: is not right"]
    with pytest.raises(HeadError):
        from_checkpoint.build_from(checkpoint, tmp_path / "x.genai", BuildOptions(heads=True), report)


def test_weights_are_found_in_the_layout_of_a_layer_behind_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers knows the released depths by number; this model is shallower."""
    from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM
    from transformers.modeling_layers import MtpModel

    from genai_bundle.builder.exporters.heads import bind_head, construct_head
    from genai_bundle.builder.exporters.skeleton import construct
    from genai_bundle.builder.exporters.tracing import bind

    deepseek(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.2.*"])
    model = construct(tmp_path)
    weights = bind(model, checkpoint)
    bound, unused = bind_head(construct_head(model), model, checkpoint, weights)
    assert unused == ["model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight"]
    wanted = MtpModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path)).state_dict()
    assert wanted.keys() <= bound.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(bound[name].numpy(), value.numpy())


def test_a_head_that_is_asked_for_has_to_be_there(headed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one draft"):
        BuildOptions(draft=headed / "model", heads=True).check()
    causal("Llama")(tmp_path / "plain")
    with pytest.raises(SourceError, match="no head for multi-token prediction"):
        from_checkpoint.build_checkpoint(tmp_path / "plain", tmp_path / "x.genai", BuildOptions(heads=True))
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
