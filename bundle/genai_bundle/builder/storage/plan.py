# SPDX-License-Identifier: Apache-2.0
"""Which weight is stored in which form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from types import MappingProxyType

import onnx_ir as ir

from genai_bundle.builder.options import BuildOptions
from genai_bundle.builder.prequantised import KeptBlocks
from genai_bundle.builder.shards import INLINE
from genai_bundle.builder.storage.blocks import BlockForm, fitting_block
from genai_bundle.builder.storage.uses import Way, way
from genai_bundle.builder.tensors import WeightTensor
from genai_bundle.errors import UsageError

FLOATS = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
BITS = {"int4": 4, "int8": 8}

Form = ir.DataType | BlockForm
"""A float type, or blocks of integers."""


@dataclass(frozen=True)
class Choice:
    """How one weight is stored. `turned`: in blocks along the first of its two axes. `kept`: in the source's own."""

    form: Form
    turned: bool = False
    kept: KeptBlocks | None = None


@dataclass(frozen=True)
class Plan:
    """The choices by the weight's name, and those that were to be quantised and are not, with the reason."""

    weights: Mapping[str, WeightTensor]
    choices: Mapping[str, Choice]
    left: Mapping[str, str]


def make_plan(
    graphs: Iterable[ir.Graph], options: BuildOptions, kept: Mapping[str, KeptBlocks] = MappingProxyType({})
) -> Plan:
    """Decide for all weights of the portable graphs; where several use one, it has to suit them all.

    Weights of less than two axes, and small ones, stay in float32: they are next to nothing, and take part in shape
    inference and in fusions.

    Raises:
        UsageError: a pattern matches no weight, or an option has a value that means nothing.
    """
    options.check()
    weights: dict[str, WeightTensor] = {}
    ways: dict[str, set[Way]] = {}
    for graph in graphs:
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, WeightTensor) and len(tensor.shape) > 1 and tensor.nbytes >= INLINE:
                weights[name] = tensor
                ways.setdefault(name, set()).update(way(use.node, use.idx) for use in value.uses())
    _check_patterns(options, weights)
    choices: dict[str, Choice] = {}
    left = dict.fromkeys(kept.keys() - weights.keys(), "the model takes it apart, or joins it with others")
    for name, tensor in weights.items():
        own = kept.get(name)
        if own is not None and not any(fnmatchcase(name, pattern) for pattern, _ in options.overrides):
            choices[name] = Choice(own.form, kept=own)
            continue
        wanted = _wanted(name, options)
        choice = Choice(FLOATS.get(wanted, tensor.stored)) if wanted else Choice(tensor.stored)
        if wanted in BITS:
            found = _blocks(tensor, ways[name], BITS[wanted], options)
            if isinstance(found, Choice):
                choice = found
            else:
                left[name] = found
        choices[name] = choice
    return Plan(weights, choices, left)


def _wanted(name: str, options: BuildOptions) -> str | None:
    """The form that the options ask for; None to keep what the checkpoint has."""
    if any(fnmatchcase(name, pattern) for pattern in options.exclude):
        return None
    named = [form for pattern, form in options.overrides if fnmatchcase(name, pattern)]
    return named[-1] if named else options.quantize


def _check_patterns(options: BuildOptions, weights: Mapping[str, WeightTensor]) -> None:
    for pattern in (*options.exclude, *(pattern for pattern, _ in options.overrides)):
        if not any(fnmatchcase(name, pattern) for name in weights):
            some = ", ".join(list(weights)[:3])
            raise UsageError(f"no weight matches the pattern {pattern!r}", hint=f"Weights are named like {some}")


def _blocks(tensor: WeightTensor, ways: set[Way], bits: int, options: BuildOptions) -> Choice | str:
    """Blocks for a weight that is used in these ways, or why it has none."""
    shape = tensor.dims
    if Way.CHOICE in ways:
        return "it chooses experts, and less precision would choose others"
    if Way.OTHER in ways or not ways:
        return "it is no matrix of products and no table of tokens"
    turned = ways == {Way.TURNED}
    length = shape[0] if turned else shape[-1]
    block = fitting_block(length, options.block_size)
    if block is None:
        return f"its rows of {length} do not divide into blocks"
    return Choice(BlockForm(bits, block, options.symmetric), turned)


def summary(plan: Plan) -> list[str]:
    """Lines for the person who builds: how many weights are stored how."""
    counts: dict[Form, list[int]] = {}
    for name, choice in plan.choices.items():
        entry = counts.setdefault(choice.form, [0, 0])
        entry[0] += 1
        entry[1] += prod(plan.weights[name].dims)
    return [f"{weights} weights ({total / 1e6:.1f} M) as {describe(form)}" for form, (weights, total) in counts.items()]


def omissions(plan: Plan) -> list[str]:
    """And what was to be quantised, but cannot be."""
    return [f"{name} is left as it is: {reason}" for name, reason in plan.left.items()]


def describe(form: Form) -> str:
    if isinstance(form, BlockForm):
        return f"int{form.bits} in {'symmetric ' if form.symmetric else ''}blocks of {form.block}"
    return next(word for word, dtype in FLOATS.items() if dtype == form)
