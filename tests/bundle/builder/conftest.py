# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints: one of bytes alone, for what is read without torch, and random models for what is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from families import BASE, save, write_json, write_text_files

_DTYPES = {"<f4": "F32", "|u1": "U8"}


def safetensors_bytes(tensors: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """A safetensors file of float32 tensors or bytes, made by hand: tests make of it what no library would write."""
    header, data = {}, b""
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.str], "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder that reads well, with two tensors that fit no model."""
    write_json(tmp_path / "config.json", {"model_type": "llama", "vocab_size": 300, "max_position_embeddings": 64})
    write_text_files(tmp_path)
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return tmp_path


MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Write a random llama checkpoint: keyword arguments change its config, `dtype` and `max_shard_size` its files."""

    def make(*, dtype: str = "float32", max_shard_size: str = "1GB", **config: Any) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(7)
        model = LlamaForCausalLM(LlamaConfig(**(BASE | config)))
        path = tmp_path_factory.mktemp("model")
        save(model, path, dtype=dtype, max_shard_size=max_shard_size)
        write_text_files(path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny(make_model: MakeModel) -> Path:
    """Two layers, four heads over two, tied table."""
    return make_model(tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_export(tiny: Path) -> Any:
    """The portable graph of `tiny`. Exporting takes seconds: tests share it and change copies only."""
    from genai_bundle.builder.checkpoint import read_checkpoint
    from genai_bundle.builder.exporters.transformers import export_decoder

    return export_decoder(read_checkpoint(tiny))


@pytest.fixture(scope="session")
def tiny_goldens(tiny: Path) -> Any:
    """Three greedy continuations of `tiny`, of different length."""
    from genai_bundle.builder.reference import reference_greedy

    return reference_greedy(tiny, [[1], [1, 40, 50, 60, 70], list(range(30, 49))], 20)


@pytest.fixture(scope="session")
def session_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Any]:
    """(graph) -> (run, ports): an ONNX Runtime session of an `onnx_ir.Model`, as `parity.Decoder` wants it."""
    import onnx_ir as ir
    import onnxruntime as ort

    def load(model: Any) -> tuple[Any, list[str]]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)

        def run(feeds: Mapping[str, Any], want: Any, into: Mapping[str, Any]) -> dict[str, Any]:
            outputs = dict(zip(want, session.run(list(want), dict(feeds)), strict=True))
            for name, array in into.items():  # a plain run copies what the runner binds in place
                array[...] = outputs.pop(name)
            return outputs

        return run, [port.name for port in session.get_inputs()]

    return load
