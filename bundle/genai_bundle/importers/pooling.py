# SPDX-License-Identifier: Apache-2.0
"""What follows a transformer in sentence-transformers: pooling, dense layers, a length of 1; as a graph and by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from genai_bundle.builder.safetensors import read_safetensors
from genai_bundle.errors import SourceError
from genai_bundle.importers.foreign import Section
from genai_bundle.importers.graphs import SourceGraph, made_graph
from genai_bundle.importers.plain import Array

POOL = {
    "cls": "{out} = Slice (vectors, zero, one, axis)",
    "lasttoken": "{out} = Slice (vectors, minus, end, axis)",
    "max": "{out} = ReduceMax (vectors, axis)",
    "mean": "{out} = ReduceMean (vectors, axis)",
    "mean_sqrt_len_tokens": "{out}_sum = ReduceSum (vectors, axis)  {out}_root = Sqrt (count)"
    "  {out} = Div ({out}_sum, {out}_root)",
    "weightedmean": "{out}_line = CumSum (ones, axis_scalar)  {out}_heavy = Mul (vectors, {out}_line)"
    "  {out}_sum = ReduceSum ({out}_heavy, axis)  {out}_all = ReduceSum ({out}_line, axis)"
    "  {out} = Div ({out}_sum, {out}_all)",
}
"""From `vectors` [1,N,D] to [1,1,D]: one text, all of whose tokens count."""

ACTIVATIONS = {"Identity": "Identity", "Tanh": "Tanh", "ReLU": "Relu", "Sigmoid": "Sigmoid"}
"""PyTorch's names, with the operators that compute the same."""


@dataclass(frozen=True)
class Dense:
    """weight: f32[in,out]. bias: f32[out]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: str


@dataclass(frozen=True)
class Head:
    """modes: ways of pooling, joined. normalised: the result has length 1."""

    modes: tuple[str, ...] = ()
    layers: tuple[Dense, ...] = ()
    normalised: bool = False

    def size(self, width: int) -> int:
        """The length of the result, from that of the transformer's vectors."""
        return len(self.layers[-1].bias) if self.layers else width * len(self.modes)

    def graph(self) -> SourceGraph:
        """`pool`: vectors f32[1,N,D] to pooled f32[1,E]."""
        parts = [POOL[mode].format(out=f"part{index}") for index, mode in enumerate(self.modes)]
        names = ", ".join(f"part{index}" for index in range(len(self.modes)))
        parts.append(f"joined = Concat <axis = 2> ({names})  dense0 = Squeeze (joined, axis)")
        weights: dict[str, NDArray[np.float32]] = {}
        for index, layer in enumerate(self.layers):
            weights |= {f"weight{index}": layer.weight, f"bias{index}": layer.bias}
            parts.append(
                f"product{index} = MatMul (dense{index}, weight{index})  sum{index} = Add (product{index}, bias{index})"
                f"  dense{index + 1} = {ACTIVATIONS[layer.activation]} (sum{index})"
            )
        last = f"dense{len(self.layers)}"
        length = f"square = Mul ({last}, {last})  total = ReduceSum (square, axis)  norm = Sqrt (total)"
        scale = f"safe = Max (norm, tiny)  pooled = Div ({last}, safe)"
        parts += [length, scale] if self.normalised else [f"pooled = Identity ({last})"]
        given = ", ".join(f"float[{','.join(map(str, one.shape))}] {name}" for name, one in weights.items())
        found = made_graph(
            "pool",
            f"pool (float[1,N,D] vectors{', ' if given else ''}{given}) => (float[1,E] pooled)"
            " <int64[1] zero = {0}, int64[1] one = {1}, int64[1] minus = {-1}, int64[1] end = {9223372036854775807},"
            " int64[1] axis = {1}, int64 axis_scalar = {1}, float tiny = {1.0e-12}> {"
            "  size = Shape <start = 1, end = 2> (vectors)  count = Cast <to = 1> (size)"
            "  row = Concat <axis = 0> (one, size, one)"
            "  ones = ConstantOfShape <value: tensor = float[1] {1}> (row)"
            f"  {'  '.join(parts)} }}",
        )
        del found.model.graph.input[1:]  # weights, which the text could only declare
        found.model.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.ascontiguousarray(one), name) for name, one in weights.items()
        )
        return found

    def plain(self, vectors: Array) -> Array:
        """The same by hand, from [N,D] to [E]."""
        count = np.arange(1, len(vectors) + 1, dtype=np.float32)[:, None]
        found = {
            "cls": vectors[0], "lasttoken": vectors[-1], "max": vectors.max(0), "mean": vectors.mean(0),
            "mean_sqrt_len_tokens": vectors.sum(0) / np.sqrt(len(vectors)),
            "weightedmean": (vectors * count).sum(0) / count.sum(),
        }  # fmt: skip
        value: Array = np.concatenate([found[mode] for mode in self.modes]).astype(np.float32)
        for layer in self.layers:
            value = _bent(value @ layer.weight + layer.bias, layer.activation)
        return value / max(float(np.linalg.norm(value)), 1e-12) if self.normalised else value


def _bent(value: Array, activation: str) -> Array:
    found: dict[str, Array] = {
        "Identity": value, "Tanh": np.tanh(value), "ReLU": np.maximum(value, 0), "Sigmoid": 1 / (1 + np.exp(-value)),
    }  # fmt: skip
    return found[activation]


def read_dense(folder: Path, config: Section) -> Dense:
    """A dense layer from its configuration and its safetensors file. Raises SourceError."""
    kind = config.text("activation_function").rpartition(".")[2] or "Tanh"
    if kind not in ACTIVATIONS:
        raise config.wrong("activation_function", f"one of {', '.join(ACTIVATIONS)}")
    shape = (config.count("out_features"), config.count("in_features"))
    config.ignore("module_output_name")
    config.only("module_input_name", "sentence_embedding")
    file = folder / "model.safetensors"
    if not file.is_file():
        raise SourceError("model.safetensors is missing", where=str(folder), hint="Download the whole folder")
    tensors = read_safetensors(file)
    weight = tensors.get("linear.weight")
    if weight is None or weight.dtype != "F32" or tuple(weight.shape) != shape:
        raise SourceError(f"has no linear.weight of f32[{shape[0]},{shape[1]}]", where=f"{folder.name}/{file.name}")
    values = np.frombuffer(weight.data, np.float32).reshape(shape)
    biased = config.flag("bias", True)
    bias = np.frombuffer(tensors["linear.bias"].data, np.float32) if biased else np.zeros(shape[0], np.float32)
    return Dense(values.T, bias, kind)
