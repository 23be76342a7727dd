# SPDX-License-Identifier: Apache-2.0
"""Each way of using a weight, in each form in which it is stored, on each engine: what the stored numbers give.

The expected result is NumPy's, from ONNX Runtime's quantiser's numbers (test_blocks.py) dequantised by the operator's
definition.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from genai_runner.backends.base import LoadOptions, find_backend

pytestmark = pytest.mark.torch

from genai_bundle.builder.options import BuildOptions  # noqa: E402
from genai_bundle.builder.storage.plan import make_plan, omissions, summary  # noqa: E402
from genai_bundle.builder.storage.spool import Spool  # noqa: E402
from genai_bundle.builder.storage.store import store  # noqa: E402
from genai_bundle.builder.tensors import WeightTensor  # noqa: E402
from genai_bundle.builder.weights import pack  # noqa: E402
from genai_bundle.errors import SourceError, UsageError  # noqa: E402

Array = np.ndarray[Any, Any]

GRAPHS = {
    "transposed": """(float[b,s,K] x, float[N,K] w) => (float[b,s,N] y)
        { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }""",
    "fused": "(float[b,s,K] x, float[N,K] w) => (float[b,s,N] y) { y = com.microsoft.FusedMatMul<transB=1>(x, w) }",
    "gemm": "(float[b,K] x, float[N,K] w, float[N] c) => (float[b,N] y) { y = Gemm<transB=1>(x, w, c) }",
    "turned": "(float[b,s,K] x, float[K,N] w) => (float[b,s,N] y) { y = MatMul(x, w) }",
    "turned-gemm": "(float[b,K] x, float[K,N] w, float[N] c) => (float[b,N] y) { y = Gemm(x, w, c) }",
    "table": "(int64[b,s] input_ids, float[N,K] w) => (float[b,s,K] y) { y = Gather(w, input_ids) }",
    "tied": """(int64[b,s] input_ids, float[N,K] w) => (float[b,s,N] y)
        { e = Gather(w, input_ids) t = Transpose<perm=[1,0]>(w) y = MatMul(e, t) }""",
    "chosen": """(int64[b,s] i, float[b,s,K,1] x, float[E,N,K] w) => (float[b,s,N,1] y)
        { g = Gather(w, i) y = MatMul(g, x) }""",
    "chosen-nd": """(int64[b,s] i, float[b,s,K,1] x, float[E,N,K] w) => (float[b,s,N,1] y)
        <int64[1] last = {2}> { c = Unsqueeze(i, last) g = GatherND(w, c) y = MatMul(g, x) }""",
    "batched": """(float[E,s,K] x, float[E,N,K] w) => (float[E,s,N] y)
        { t = Transpose<perm=[0,2,1]>(w) y = MatMul(x, t) }""",
}
"""Every way that exporters use a weight `w`."""

OTHER = """(float[b,s,K] x, float[N,K] w) => (float[b,s,K] y)
    { m = Exp(w) t = Transpose<perm=[1,0]>(m) z = MatMul(x, t) y = MatMul(z, m) }"""
ROUTER = """(float[b,K] x, float[N,K] w) => (float[b,2] y)
    <int64[1] two = {2}> { l = Gemm<transB=1>(x, w) p = Softmax(l) y, i = TopK(p, two) }"""
POSITIONS = "(int64[b,s] position_ids, float[N,K] w) => (float[b,s,K] y) { y = Gather(w, position_ids) }"

E, N = 3, 24


def weight(text: str, length: int, dtype: Any = np.float32) -> Array:
    named = re.search(r"float\[([^\]]*)\] w", text)
    assert named is not None
    shape = [{"E": E, "N": N, "K": length}[dim] for dim in named[1].split(",")]
    return np.random.default_rng(length).standard_normal(shape).astype(dtype)


def model(text: str, w: Array, contrib: bool = False) -> Any:
    """The graph with `w` as a weight of a checkpoint."""
    sizes = {"E": E, "N": N, "K": w.shape[0] if "[K,N]" in text else w.shape[-1]}
    text = re.sub(r"[ENK](?=[],])", lambda found: str(sizes[found[0]]), text)
    imports = '"" : 23, "com.microsoft" : 1' if contrib else '"" : 23'
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]> g {text}")
    made = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    stored = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}[str(w.dtype)]
    attach(made, "w", WeightTensor("w", w.shape, ir.DataType[stored], lambda part: w[part]))
    if "c" in {value.name for value in made.graph.inputs}:
        attach(made, "c", ir.tensor(np.arange(N, dtype=np.float32), name="c"))
    return made


def attach(made: Any, name: str, tensor: Any) -> None:
    value = next(value for value in made.graph.inputs if value.name == name)
    made.graph.inputs.remove(value)
    value.const_value = tensor
    made.graph.register_initializer(value)


def feeds_of(made: Any, length: int) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    dims = {"b": 2, "s": 3}
    feeds = {}
    for value in made.graph.inputs:
        shape = [dims.get(str(dim), dim) for dim in value.shape]
        if value.dtype == ir.DataType.INT64:
            feeds[value.name] = rng.integers(0, E if value.name == "i" else N, shape)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def expected(name: str, w: Array, feeds: dict[str, Array]) -> Array:
    """What the graph of this name computes with the matrix `w`, in float64."""
    w = w.astype(np.float64)
    ids, x = feeds.get("input_ids"), feeds.get("x")
    if name in ("transposed", "fused"):
        return x @ w.T
    if name == "turned":
        return x @ w
    if name in ("gemm", "turned-gemm"):
        return x @ (w.T if name == "gemm" else w) + np.arange(N)
    if name == "table":
        return w[ids]
    if name == "tied":
        return w[ids] @ w.T
    return w[feeds["i"]] @ x if name.startswith("chosen") else x @ w.transpose(0, 2, 1)


def run(made: Any, feeds: dict[str, Array], backend: str, *, low_memory: bool = False) -> Array:
    graphs, shards = pack({"g.onnx": made})
    weights = {path: memoryview(content(shard)) for path, shard in shards.items()}
    graph = find_backend(backend).load("g", graphs["g.onnx"], weights, LoadOptions(low_memory=low_memory))
    return np.asarray(graph.run(feeds, ["y"])["y"])


def content(shard: Any) -> bytes:
    raw = bytearray(shard.size)
    for offset, read in shard.segments:
        data = read()
        raw[offset : offset + len(data)] = data
    return bytes(raw)


def dequantised(w: Array, bits: int, block: int, symmetric: bool) -> Array:
    """The last axis through ONNX Runtime's quantiser and back, by the definition of DequantizeLinear."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    rows = w.astype(np.float32).reshape(-1, w.shape[-1])
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=bits)
    packed, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(rows.T))

    def elements(raw: Array) -> Array:
        flat = raw.reshape(len(rows), -1)
        return flat if bits == 8 else np.stack([flat & 15, flat >> 4], axis=-1).reshape(len(rows), -1)

    scales = scales.reshape(len(rows), -1)
    middles = np.full(scales.shape, 1 << (bits - 1)) if symmetric else elements(zeros)[:, : scales.shape[1]]
    values = elements(packed).reshape(len(rows), -1, block).astype(np.float32)
    return ((values - middles[..., None]) * scales[..., None]).reshape(w.shape).astype(np.float32)


FORMS = {
    "int4": {"quantize": "int4"},
    "int4-symmetric": {"quantize": "int4", "symmetric": True},
    "int8": {"quantize": "int8", "block_size": 16},
    "int8-symmetric": {"quantize": "int8", "symmetric": True},
}


ENGINES = ("onnxruntime", "low-memory", "reference", "contrib")
CASES = [(name, engine) for name in GRAPHS for engine in ENGINES if name != "fused" or engine == "contrib"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "engine"), CASES)
@pytest.mark.parametrize(
    "length", [64, 96]
)  # 96: an odd number of blocks, so that zeros of four bits end within a byte
def test_quantised(tmp_path: Path, name: str, form: str, engine: str, length: int) -> None:
    contrib = engine == "contrib"
    w = weight(GRAPHS[name], length)
    options = BuildOptions(**FORMS[form])
    turned = name.startswith("turned")
    rows = w.T if turned else w
    exact = dequantised(rows, int(form[3]), options.block_size, options.symmetric)
    exact = exact.T if turned else exact
    made = model(GRAPHS[name], w, contrib)
    feeds = feeds_of(made, length)
    with Spool(tmp_path) as spool:
        plan = make_plan([made.graph], options)
        assert not plan.left
        changed = store([made], plan, spool, lambda _: None)
        np.testing.assert_array_equal(changed["w"].numpy(), exact)
        backend = engine if engine == "reference" else "onnxruntime"
        got = run(made, feeds, backend, low_memory=engine == "low-memory")
        np.testing.assert_allclose(got, expected(name, exact, feeds), rtol=1e-6, atol=2e-5)
    operators = {node.op_type for node in made.graph}
    if contrib:
        wanted = {
            "table": {"GatherBlockQuantized"},
            "tied": {"GatherBlockQuantized", "MatMulNBits"},
            "chosen": {"GatherBlockQuantized", "MatMul"},
            "chosen-nd": {"GatherBlockQuantized", "MatMul"},
            "batched": {"DequantizeLinear", "Transpose", "MatMul"},
        }
        assert operators == wanted.get(name, {"MatMulNBits"})
    elif name in ("table", "chosen", "chosen-nd"):
        assert "DequantizeLinear" not in operators  # nothing dequantises the whole
    assert "w" not in made.graph.initializers


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", [None, "fp16", "bf16", "fp32"])
def test_float_types(tmp_path: Path, stored: str, form: str | None, engine: str) -> None:
    import ml_dtypes

    types = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
    w = weight(GRAPHS["tied"], 64, types[stored])
    made = model(GRAPHS["tied"], w, engine == "contrib")
    feeds = feeds_of(made, 64)
    target = types[{"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", None: stored}[form]]
    exact = w.astype(target)
    with Spool(tmp_path) as spool:
        changed = store([made], make_plan([made.graph], BuildOptions(quantize=form)), spool, lambda _: None)
        assert list(changed) == ([] if exact.dtype == w.dtype or target is np.float32 else ["w"])
        if changed:
            np.testing.assert_array_equal(changed["w"].numpy(), exact.astype(np.float32))
        assert made.graph.initializers["w"].const_value.tobytes() == exact.tobytes()
        backend = engine if engine == "reference" else "onnxruntime"
        got = run(made, feeds, backend, low_memory=engine == "low-memory")
    np.testing.assert_allclose(got, expected("tied", exact, feeds), rtol=1e-6, atol=2e-5)


def test_float16_that_overflows_is_refused(tmp_path: Path) -> None:
    w = weight(GRAPHS["turned"], 64)
    w[3, 4] = 70000
    made = model(GRAPHS["turned"], w)
    with Spool(tmp_path) as spool:
        store([made], make_plan([made.graph], BuildOptions(quantize="fp16")), spool, lambda _: None)
        with pytest.raises(SourceError, match=r"w: holds 70000, and float16 ends at 65504.*--quantize-exclude 'w'"):
            pack({"g.onnx": made})


def test_one_copy_for_all_graphs(tmp_path: Path) -> None:
    """Portable and tuned graph, table and matrix: the packed bytes, scales and zeros are in the shard once."""
    w = weight(GRAPHS["tied"], 128)
    portable, variant = model(GRAPHS["tied"], w), model(GRAPHS["tied"], w, True)
    with Spool(tmp_path) as spool:
        store([portable, variant], make_plan([portable.graph], BuildOptions(quantize="int4")), spool, lambda _: None)
        _, shards = pack({"a.onnx": portable, "b.onnx": variant})
    # Scales and zeros of this small weight are below the size that moves into a shard.
    assert [shard.size for shard in shards.values()] == [N * 128 // 2]


def test_what_cannot_be_quantised_is_said() -> None:
    plan = make_plan([model(GRAPHS["turned"], weight(GRAPHS["turned"], 40)).graph], BuildOptions(quantize="int4"))
    assert dict(plan.left) == {"w": "its rows of 40 do not divide into blocks"}
    assert omissions(plan)[-1] == "w is left as it is: its rows of 40 do not divide into blocks"
    for text in (OTHER, POSITIONS):  # small, and every row of a table of positions matters
        plan = make_plan([model(text, weight(text, 64)).graph], BuildOptions(quantize="int4"))
        assert dict(plan.left) == {"w": "it is no matrix of products and no table of tokens"}
    plan = make_plan([model(ROUTER, weight(ROUTER, 64)).graph], BuildOptions(quantize="int4"))
    assert dict(plan.left) == {"w": "it chooses experts, and less precision would choose others"}


def test_patterns() -> None:
    made = model(GRAPHS["turned"], weight(GRAPHS["turned"], 64))

    def form(**options: Any) -> str:
        return summary(make_plan([made.graph], BuildOptions(quantize="int4", **options)))[0].partition("as ")[2]

    assert form() == "int4 in blocks of 32"
    assert form(overrides=[("w*", "int8")]) == "int8 in blocks of 32"
    assert form(overrides=[("w*", "int8"), ("?", "bf16")]) == "bf16"
    assert form(overrides=[("w*", "int8")], exclude=["w"]) == "fp32"
    assert form(symmetric=True, block_size=64) == "int4 in symmetric blocks of 64"
    with pytest.raises(UsageError, match=r"no weight matches the pattern 'lm_head\*'"):
        form(exclude=["lm_head*"])
    with pytest.raises(UsageError, match="cannot be stored as 'int3'"):
        form(overrides=[("w", "int3")])
    with pytest.raises(UsageError, match="a block of 24 elements"):
        form(block_size=24)


def test_the_spool_leaves_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        place = spool.reserve(100)
        spool.put(place, bytes(range(100)))
        first = spool.view(place, 100)
        other = spool.reserve(5)
        spool.put(other, b"after")
        assert bytes(spool.view(other, 5)) == b"after"
    assert bytes(first) == bytes(range(100))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="cannot keep quantised weights here"), Spool(tmp_path / "absent") as spool:
        spool.put(spool.reserve(1), b"x")


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process in the POSIX way")
def test_the_spool_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from genai_bundle.builder.storage.spool import Spool;"
        "s = Spool(Path(sys.argv[1])); s.put(s.reserve(3), b'abc'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode != 0
    assert list(tmp_path.iterdir()) == []
