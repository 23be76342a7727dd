# SPDX-License-Identifier: Apache-2.0
"""Carry out a plan: convert or quantise each weight once, and let every graph of the bundle read what is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_bundle.builder import tidy
from genai_bundle.builder.options import BuildOptions
from genai_bundle.builder.prequantised import KeptBlocks
from genai_bundle.builder.report import Report
from genai_bundle.builder.storage.blocks import BlockForm
from genai_bundle.builder.storage.packed import Packed, spooled
from genai_bundle.builder.storage.plan import BITS, Plan, describe, make_plan, omissions, summary
from genai_bundle.builder.storage.rewrite import CONTRIB, read_blocks, read_cast
from genai_bundle.builder.storage.spool import Spool
from genai_bundle.builder.tensors import WeightTensor
from genai_bundle.builder.variants.ort_joined import join_products
from genai_bundle.errors import SourceError, UsageError


@dataclass(frozen=True)
class Stored:
    """changed: what the stored weights stand for, by name, where that is not what the checkpoint holds.

    record: how many weights are stored how, for the manifest's `source`.
    """

    changed: Mapping[str, WeightTensor]
    record: Mapping[str, Any]


def store_weights(
    models: dict[str, ir.Model],
    entries: Mapping[str, dict[str, Any]],
    options: BuildOptions,
    spool: Spool,
    tell: Callable[[str], None],
    kept: Mapping[str, KeptBlocks] | None = None,
) -> Stored:
    """The last pass over a bundle's graphs, in place.

    Args:
        models: all graphs by member path. A graph with quantised weights that has no variant for ONNX Runtime gets one
            (and `entries` name it): that engine dequantises the portable form whole when it loads it.
        entries: the manifest's `graphs`.
        kept: weights that the source holds quantised: they keep that form, unless an override names them.

    Raises:
        UsageError: the options mean nothing for these weights.
    """
    plan = make_plan([models[entry["file"]].graph for entry in entries.values()], options, kept or {})
    for line in summary(plan):
        tell(line)
    for line in omissions(plan):
        Report.of(tell).note(line)
    quantised = [name for name, choice in plan.choices.items() if isinstance(choice.form, BlockForm)]
    if options.quantize in BITS and not quantised:
        raise UsageError(f"the model has no weight that can be stored as {options.quantize}", where="--quantize")
    if quantised:
        _add_variants(models, entries)
    changed = store(models.values(), plan, spool, tell)
    for model in models.values():
        if CONTRIB in model.opset_imports:
            join_products(model.graph)
            tidy.drop_unused(model)
    counts = Counter(describe(choice.form) for choice in plan.choices.values())
    return Stored(changed, {"stored": dict(sorted(counts.items())), "left": sorted(plan.left)})


def _add_variants(models: dict[str, ir.Model], entries: Mapping[str, dict[str, Any]]) -> None:
    for name, entry in entries.items():
        if not entry.get("variants"):
            file = f"{name}.ort-cpu.onnx"
            models[file] = models[entry["file"]].clone()
            models[file].opset_imports[CONTRIB] = 1
            when = {"backend": "onnxruntime", "device": "cpu"}
            entry["variants"] = [{"name": "ort-cpu", "when": when, "file": file}]


def store(models: Iterable[ir.Model], plan: Plan, spool: Spool, tell: Callable[[str], None]) -> dict[str, WeightTensor]:
    """Rewrite graphs, in place, to read their weights as the plan says.

    Those that use operators of ONNX Runtime already get its operators for quantised weights, others standard ones.

    Returns:
        What the stored weights stand for, by name, where that is not exactly what the checkpoint holds.
    """
    kept, packed, changed = _convert(plan, spool, tell)
    for model in models:
        contrib = CONTRIB in model.opset_imports
        for name in list(model.graph.initializers):
            if name in packed:
                read_blocks(model, packed[name], contrib=contrib)
            elif name in kept:
                read_cast(model.graph, name, kept[name])
        tidy.drop_unused(model)
        model.graph.sort()
    return changed


def _convert(
    plan: Plan, spool: Spool, tell: Callable[[str], None]
) -> tuple[dict[str, ir.TensorProtocol], dict[str, Packed], dict[str, WeightTensor]]:
    """Weights in another float type, those in blocks, and what stands for those that are no longer the same."""
    kept: dict[str, ir.TensorProtocol] = {}
    packed: dict[str, Packed] = {}
    changed: dict[str, WeightTensor] = {}
    for number, (name, choice) in enumerate(plan.choices.items(), start=1):
        weight = plan.weights[name]
        if isinstance(choice.form, BlockForm):
            tell(f"quantising {number} of {len(plan.choices)}: {name}")
            packed[name] = spooled(weight, choice, spool)
            if choice.kept is None:
                changed[name] = packed[name].dequantised()
        elif choice.form != ir.DataType.FLOAT:
            converted = _converted(weight, choice.form)
            kept[name] = ir.LazyTensor(_reader(converted), choice.form, ir.Shape(weight.shape), name=name)
            if weight.stored != choice.form:
                changed[name] = converted
    return kept, packed, changed


def _reader(weight: WeightTensor) -> Callable[[], ir.TensorProtocol]:
    return lambda: ir.Tensor(weight.rows(slice(None)), name=weight.name)


def _converted(weight: WeightTensor, dtype: ir.DataType) -> WeightTensor:
    """The weight in another float type; a number that float16 cannot hold is an error when it is read."""

    def rows(part: slice) -> NDArray[Any]:
        array = weight.rows(part)
        with np.errstate(over="ignore"):
            found: NDArray[Any] = array.astype(dtype.numpy(), copy=False)
        if dtype == ir.DataType.FLOAT16 and weight.stored != dtype and not np.isfinite(found).all():
            largest = float(np.abs(array.astype(np.float32)).max())
            raise SourceError(
                f"holds {largest:g}, and float16 ends at 65504", where=str(weight.name),
                hint=f"Use bf16, or exclude this weight: --quantize-exclude '{weight.name}'",
            )  # fmt: skip
        return found

    return WeightTensor(weight.name or "", weight.dims, dtype, rows)
