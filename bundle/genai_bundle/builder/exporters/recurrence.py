# SPDX-License-Identifier: Apache-2.0
"""Recurrences over a text as ONNX scans: one run takes any number of tokens, from any state.

transformers writes a recurrence twice, as one step for decoding and as a loop or chunks over a text for the prompt.
A tracer follows neither the loop (its length is the text's) nor, where the model's prompt always begins at zero, a
prompt on a filled state. Here the same recurrences stand as a scan over tokens, which is exported as ONNX's Scan:
projections and convolutions then run over the whole prompt at once, and only the state goes token by token.

The functions are known by the names of the kernels that they replace (Gu and Dao 2023, arXiv:2312.00752, section 3.2;
Dao and Gu 2024, arXiv:2405.21060, section 2; Yang et al. 2024, arXiv:2412.06464, equation 10), not by families.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._higher_order_ops.scan import scan
from torch.nn import functional
from transformers.cache_utils import Cache

_READ: list[Any] = [None]
"""The recurrent state that a layer read last: one kernel does not take it, since its prompts begin at zero."""


def mamba_selective_scan(
    hidden_states: Any,
    dt: Any,
    A: Any,  # noqa: N803  the kernel's own names
    B: Any,  # noqa: N803
    C: Any,  # noqa: N803
    D: Any = None,  # noqa: N803
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    """Selective scan. hidden_states, dt, z [batch,width,text], A [width,state], B, C [batch,state,text]."""
    dt = dt if delta_bias is None else dt + delta_bias[..., None]
    dt = functional.softplus(dt) if delta_softplus else dt
    decay = torch.exp(dt[:, :, :, None] * A[None, :, None, :])
    added = (dt * hidden_states)[:, :, :, None] * B.transpose(1, 2)[:, None]

    def step(state: Any, now: Any) -> Any:
        by, more, read = now
        state = by * state + more
        return state, (state * read[:, None, :]).sum(-1)

    inputs = (decay.permute(2, 0, 1, 3), added.permute(2, 0, 1, 3), C.permute(2, 0, 1))
    begin, _READ[0] = _READ[0], None  # another layer's state is not this one's
    last, outputs = scan(step, begin, inputs)
    output = outputs.permute(1, 2, 0)
    output = output if D is None else output + hidden_states * D[None, :, None]
    output = output if z is None else output * functional.silu(z)
    return (output, last) if return_last_state else output


def mamba2_chunk_scan(
    hidden_states: Any,
    dt: Any,
    A: Any,  # noqa: N803
    B: Any,  # noqa: N803
    C: Any,  # noqa: N803
    D: Any = None,  # noqa: N803
    dt_bias: Any = None,
    initial_states: Any = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: Any,
) -> Any:
    """State space duality. hidden_states [batch,text,heads,size], dt [batch,text,heads], A [heads], B, C
    [batch,text,groups,state], initial_states [batch,heads,size,state]."""
    heads = hidden_states.shape[2]
    dt = dt if dt_bias is None else dt + dt_bias
    dt = torch.clamp(functional.softplus(dt) if dt_softplus else dt, dt_limit[0], dt_limit[1])
    B, C = _repeat(B, heads), _repeat(C, heads)  # noqa: N806
    decay, added = torch.exp(dt * A), hidden_states * dt[..., None]

    def step(state: Any, now: Any) -> Any:
        by, more, write, read = now
        state = by[..., None, None] * state + more[..., None] * write[:, :, None, :]
        return state, (state * read[:, :, None, :]).sum(-1)

    last, outputs = scan(step, initial_states, tuple(each.transpose(0, 1) for each in (decay, added, B, C)))
    output = outputs.transpose(0, 1)
    output = output if D is None else output + hidden_states * D[..., None]
    return (output, last) if return_final_states else output


def torch_chunk_gated_delta_rule(
    query: Any,
    key: Any,
    value: Any,
    g: Any,
    beta: Any,
    initial_state: Any = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> Any:
    """Gated delta rule. query, key [batch,text,key heads,key size], value [batch,text,heads,size], g (log of the
    decay) and beta [batch,text,heads], initial_state [batch,heads,key size,size]."""
    query, key = _repeat(query, value.shape[2]), _repeat(key, value.shape[2])
    if use_qk_l2norm_in_kernel:
        query, key = (each * torch.rsqrt((each * each).sum(-1, keepdim=True) + 1e-6) for each in (query, key))
    query = query * query.shape[-1] ** -0.5

    def step(state: Any, now: Any) -> Any:
        read, at, new, by, rate = now
        state = state * by[..., None, None]
        change = (new - (state * at[..., None]).sum(-2)) * rate[..., None]
        state = state + at[..., None] * change[:, :, None, :]
        return state, (state * read[..., None]).sum(-2)

    inputs = tuple(each.transpose(0, 1) for each in (query, key, value, torch.exp(g), beta))
    last, outputs = scan(step, initial_state, inputs)
    return outputs.transpose(0, 1), last if output_final_state else None


def _repeat(value: Any, heads: int) -> Any:
    """[batch,text,groups,size] for `heads` heads: head i reads group i // (heads / groups)."""
    groups = value.shape[2]
    return value.unsqueeze(3).expand(-1, -1, -1, heads // groups, -1).flatten(2, 3) if heads > groups else value


_KERNELS = (mamba_selective_scan, mamba2_chunk_scan, torch_chunk_gated_delta_rule)


@contextmanager
def as_scans(model: Any) -> Iterator[None]:
    """Inside, the model's code calls the functions above in the place of its own of the same name."""
    sources = {id(found): found for module in model.modules() if (found := sys.modules.get(type(module).__module__))}
    held = [
        (source, kernel, getattr(source, kernel.__name__))
        for source in sources.values()
        for kernel in _KERNELS
        if hasattr(source, kernel.__name__)
    ]
    read = Cache.get_recurrent_state

    def remember(cache: Any, *arguments: Any, **named: Any) -> Any:
        _READ[0] = read(cache, *arguments, **named)
        return _READ[0]

    Cache.get_recurrent_state = remember
    try:
        for source, kernel, _ in held:
            setattr(source, kernel.__name__, kernel)
        yield
    finally:
        Cache.get_recurrent_state = read
        _READ[0] = None
        for source, kernel, own in held:
            setattr(source, kernel.__name__, own)
