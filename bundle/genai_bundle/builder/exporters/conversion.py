# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's tensors under the names and in the shapes that the model's parameters have.

transformers renames, joins and splits tensors while it loads them (experts become one array, fused projections come
apart). Its own table says how; here the table is read as data and its operations are done in NumPy, later, on the
checkpoint's mapping: nothing passes through torch, and nothing is in memory before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from genai_bundle.builder import lazy
from genai_bundle.builder.lazy import Weight, stored_weight
from genai_bundle.builder.safetensors import StoredTensor
from genai_bundle.errors import SourceError

Parts = dict[str, list[Weight]]
"""What an operation takes and gives: for each pattern of names the weights that matched it, in the order of names."""


@dataclass
class _Join:
    """A target that a converter makes, with what has been collected for it."""

    converter: Any
    parts: Parts


def convert(
    model: Any, tensors: Mapping[str, StoredTensor], table: Sequence[Any] | None = None
) -> tuple[dict[str, Weight], list[str]]:
    """The weights of `model` by the names of its state, and the names of the tensors that it has no use for.

    `table`: what transformers does to the tensors, where that is not its table for this class of model.

    A weight that is one stored tensor keeps that tensor's name. Names that the model shares between parameters are
    not filled in here.

    Raises:
        SourceError: a tensor is made by an operation that is not known here.
    """
    state = model.state_dict()
    table = get_model_conversion_mapping(model) if table is None else table
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    found: dict[str, Weight] = {}
    joins: dict[str, _Join] = {}
    unused = []
    for name in sorted(tensors, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        if target not in state:
            unused.append(name)
        elif pattern is None:
            found[target] = stored_weight(tensors[name])
        else:
            join = joins.setdefault(target, _Join(by_pattern[pattern], {}))
            join.parts.setdefault(pattern, []).append(stored_weight(tensors[name]))
    for target, join in joins.items():
        found |= _run(target, join, state)
    return found, unused


def _run(target: str, join: _Join, state: Mapping[str, Any]) -> dict[str, Weight]:
    """Apply the converter's operations one after another. `target` is the name with its first target pattern."""
    converter, parts = join.converter, join.parts
    targets = list(converter.target_patterns)
    names = [target.replace(targets[0], other, 1) for other in targets]
    place = ", ".join(sorted({weight.where for weights in parts.values() for weight in weights})[:2])
    for operation in converter.operations:
        kind = type(operation).__name__
        step = _OPERATIONS.get(kind)
        if step is None:
            raise SourceError(f"transformers loads '{target}' through {kind}, which is not known here", where=place)
        try:
            parts = step(operation, parts, converter, [tuple(state[name].shape) for name in names])
        except (ValueError, IndexError) as error:  # shapes that do not fit: a config of another checkpoint
            raise SourceError(f"cannot be made into '{target}': {error}", where=place) from error
    made = [weight for weights in parts.values() for weight in weights]
    if len(made) != len(names):
        raise SourceError(f"{len(made)} weights come of it, expected {', '.join(names)}", where=place)
    return {name: replace(weight, name=name) for name, weight in zip(names, made, strict=True)}


Step = Callable[[Any, Parts, Any, Sequence[tuple[int, ...]]], Parts]
"""(operation, parts, converter, shapes of the model's parameters) -> parts."""


def _merge(operation: Any, parts: Parts, *_: Any) -> Parts:
    """MergeModulelist: the weights of one pattern become one, with an axis more."""
    return {pattern: [lazy.stack(weights, operation.dim)] for pattern, weights in parts.items()}


def _concatenate(operation: Any, parts: Parts, converter: Any, *_: Any) -> Parts:
    """Concatenate: all weights, in the order of the converter's patterns."""
    weights = [weight for pattern in converter.source_patterns for weight in parts.get(pattern, [])]
    return {converter.target_patterns[0]: [lazy.concatenate(weights, operation.dim)]}


def _chunk(operation: Any, parts: Parts, converter: Any, shapes: Sequence[tuple[int, ...]]) -> Parts:
    """Chunk: one weight in as many equal pieces as there are targets."""
    if operation.num_shards_attribute is not None:
        raise ValueError("it is cut into a number of pieces that the config states")
    made = lazy.chunks(_single(parts), operation.dim, len(shapes))
    return {target: [piece] for target, piece in zip(converter.target_patterns, made, strict=True)}


def _split(operation: Any, parts: Parts, converter: Any, shapes: Sequence[tuple[int, ...]]) -> Parts:
    """Split: one weight in pieces as long as the model's parameters are."""
    made = lazy.pieces(_single(parts), operation.dim, [shape[operation.dim] for shape in shapes])
    return {target: [piece] for target, piece in zip(converter.target_patterns, made, strict=True)}


def _transpose(operation: Any, parts: Parts, _: Any, shapes: Sequence[tuple[int, ...]]) -> Parts:
    """Transpose: two axes exchanged; with check_dims only where the model's parameter has another shape."""
    weight = _single(parts)
    if not operation.check_dims or weight.shape != shapes[0]:
        weight = lazy.turned(weight, operation.dim0, operation.dim1)
    return {pattern: [weight] for pattern in parts}


_OPERATIONS: Mapping[str, Step] = {
    "MergeModulelist": _merge,
    "Concatenate": _concatenate,
    "Chunk": _chunk,
    "Split": _split,
    "Transpose": _transpose,
}


def _single(parts: Parts) -> Weight:
    (weights,) = parts.values()
    (weight,) = weights
    return weight
