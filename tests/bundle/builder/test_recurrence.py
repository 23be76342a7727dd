# SPDX-License-Identifier: Apache-2.0
"""Recurrences as scans compute what transformers' own functions compute, from zero and from a state."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import optional

pytestmark = pytest.mark.torch
torch = optional("torch", "torch")

from transformers.models.mamba import modeling_mamba  # noqa: E402
from transformers.models.mamba2 import modeling_mamba2  # noqa: E402
from transformers.models.qwen3_5 import modeling_qwen3_5  # noqa: E402

from genai_bundle.builder.exporters import recurrence  # noqa: E402

BATCH, TEXT = 2, 11


def random(*shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_selective_scan_from_zero_and_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own function begins at zero only, so a state is held against the same text in one part."""
    arguments = [random(BATCH, 6, TEXT), random(BATCH, 6, TEXT), -random(6, 4).abs(), random(BATCH, 4, TEXT)]
    arguments += [random(BATCH, 4, TEXT)]
    named = {"D": random(6), "z": random(BATCH, 6, TEXT), "delta_bias": random(6), "delta_softplus": True}
    theirs = modeling_mamba.mamba_selective_scan
    whole = theirs(*arguments, **named, return_last_state=True)
    monkeypatch.setattr(recurrence, "_READ", [torch.zeros(BATCH, 6, 4)])
    close(recurrence.mamba_selective_scan(*arguments, **named, return_last_state=True), whole)

    def part(begin: int, end: int) -> Any:
        cut = [each if each.dim() == 2 else each[:, :, begin:end] for each in arguments]
        return recurrence.mamba_selective_scan(
            *cut, **(named | {"z": named["z"][:, :, begin:end]}), return_last_state=True
        )

    recurrence._READ[0] = torch.zeros(BATCH, 6, 4)
    first, state = part(0, 4)
    recurrence._READ[0] = state
    second, state = part(4, TEXT)
    close((torch.cat([first, second], -1), state), whole)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_state_space_dual_from_a_state(groups: int) -> None:
    arguments = [random(BATCH, TEXT, 4, 3), random(BATCH, TEXT, 4), -random(4).abs()]
    arguments += [random(BATCH, TEXT, groups, 5), random(BATCH, TEXT, groups, 5)]
    named = {
        "D": random(4), "dt_bias": random(4), "dt_softplus": True, "dt_limit": (0.1, 0.9),
        "initial_states": random(BATCH, 4, 3, 5), "return_final_states": True,
    }  # fmt: skip
    theirs = modeling_mamba2.mamba2_chunk_scan(*arguments, chunk_size=4, **named)
    close(recurrence.mamba2_chunk_scan(*arguments, chunk_size=4, **named), theirs)


@pytest.mark.parametrize("normal", [True, False])
def test_the_gated_delta_rule_from_a_state(normal: bool) -> None:
    arguments = [random(BATCH, TEXT, 2, 5), 0.3 * random(BATCH, TEXT, 2, 5), random(BATCH, TEXT, 4, 3)]
    arguments += [-random(BATCH, TEXT, 4).abs(), random(BATCH, TEXT, 4).sigmoid()]
    named = {
        "initial_state": random(BATCH, 4, 5, 3), "output_final_state": True, "use_qk_l2norm_in_kernel": normal,
    }  # fmt: skip
    theirs = modeling_qwen3_5.torch_chunk_gated_delta_rule(*arguments, chunk_size=4, **named)
    close(recurrence.torch_chunk_gated_delta_rule(*arguments, **named), theirs)


def test_the_model_has_its_own_functions_back() -> None:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    own = modeling_mamba2.mamba2_chunk_scan
    config = Mamba2Config(vocab_size=8, hidden_size=8, num_heads=2, head_dim=8, num_hidden_layers=1, state_size=4)
    with recurrence.as_scans(Mamba2ForCausalLM(config)):
        assert modeling_mamba2.mamba2_chunk_scan is recurrence.mamba2_chunk_scan
    assert modeling_mamba2.mamba2_chunk_scan is own
