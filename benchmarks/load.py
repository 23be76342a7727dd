# SPDX-License-Identifier: Apache-2.0
"""What opening a bundle costs: time, private and proportional memory, beside plain ONNX Runtime on the same graph.

    python benchmarks/load.py                 # a 500 MB fp32 model, 20 processes over it
    python benchmarks/load.py --mb 2000 --processes 4 --json

Each row is measured in a fresh process that has imported everything and made an empty session first, so that the
figures are the bundle's own and not the engine's.
`private` and `proportional` are what the process has more after loading than before (Private_* and Pss of
smaps_rollup);
`peak` is the growth of its resident high-water mark during loading. Linux only, as the figures come from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from genai_bundle.writer import Shard, write_bundle

WIDTH = 2048  # one layer is 16 MiB of fp32
PLACES = ("inside", "low-memory", "packed")


def graph(layers: int, external: bool) -> onnx.ModelProto:
    """x [1, 2048] times `layers` square matrices; the weights outside, or inside as a plain exporter leaves them."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [helper.make_node("Identity", ["x"], ["x0"])], [], "x0"
    size = WIDTH * WIDTH * 4
    for index in range(layers):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=(WIDTH, WIDTH))
        if external:
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "weights/decoder-00.bin", "offset": index * size, "length": size}
            for key, at in place.items():
                tensor.external_data.add(key=key, value=str(at))
        else:
            tensor.raw_data = rng.standard_normal((WIDTH, WIDTH), np.float32).tobytes()
        weights.append(tensor)
        nodes.append(helper.make_node("MatMul", [value, tensor.name], [f"y{index}"]))
        value = f"y{index}"
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in ("x", value)]
    body = helper.make_graph(nodes, "chain", ports[:1], ports[1:], weights)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def build(folder: Path, megabytes: int) -> None:
    """plain.onnx with its weights inside, and the same as chain.genai."""
    layers = max(1, round(megabytes * 1_000_000 / (WIDTH * WIDTH * 4)))
    plain = graph(layers, external=False)
    (folder / "plain.onnx").write_bytes(plain.SerializeToString())
    size = WIDTH * WIDTH * 4
    segments = [(index * size, lambda w=w: w.raw_data) for index, w in enumerate(plain.graph.initializer)]
    model = graph(layers, external=True)
    manifest: dict[str, Any] = {
        "format": "1.0",
        "name": "chain",
        "graphs": {"chain": {"file": "chain.onnx"}},
        "inputs": {"x": {"type": "f32", "dims": [1, WIDTH]}},
        "outputs": {"y": {"type": "f32", "dims": [1, WIDTH]}},
        "steps": [
            {"run": "chain", "in": {"x": "x"}, "out": {model.graph.output[0].name: "y0"}},
            {"emit": {"y": "y0"}},
        ],
    }
    members = {"chain.onnx": model.SerializeToString(), "weights/decoder-00.bin": Shard(layers * size, segments)}
    write_bundle(folder / "chain.genai", manifest, members)


def memory() -> dict[str, int]:
    """Private and proportional bytes of this process."""
    fields = dict.fromkeys(("Private_Clean", "Private_Dirty", "Pss"), 0)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        if name in fields:
            fields[name] = int(value.split()[0]) * 1024
    return {"private": fields["Private_Clean"] + fields["Private_Dirty"], "proportional": fields["Pss"]}


def high_water() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def child(folder: Path, place: str, wait: bool) -> None:
    """Load one way, run once where `wait` asks for it, and print what it cost."""
    import onnxruntime as ort

    import genai_runner

    x = np.ones((1, WIDTH), np.float32)
    ort.InferenceSession(graph(0, external=True).SerializeToString(), providers=["CPUExecutionProvider"])
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    before, peak = memory(), high_water()
    start = time.perf_counter()
    if place == "inside":
        session = ort.InferenceSession(folder / "plain.onnx", providers=["CPUExecutionProvider"])
    else:
        pipe = genai_runner.load(folder / "chain.genai", low_memory=place == "low-memory")
    seconds = time.perf_counter() - start
    after = memory()
    row = {"load_s": seconds, "peak": high_water() - peak, **{key: after[key] - before[key] for key in after}}
    if wait:  # several at once: use the weights, then measure while all hold them
        _ = session.run(None, {"x": x}) if place == "inside" else pipe(x=x)
        print("ready", flush=True)
        sys.stdin.readline()
        after = memory()
        row |= {key: after[key] - before[key] for key in after}
    print(json.dumps(row), flush=True)
    if wait:  # stay until every process has measured: a page shared by fewer counts more
        sys.stdin.readline()


def spawn(folder: Path, place: str, wait: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", place, "--folder", str(folder), *(["--wait"] if wait else [])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def alone(folder: Path, place: str) -> dict[str, float]:
    """The best of three: the machine is shared, and the first run also warms the page cache."""
    rows = [json.loads(spawn(folder, place).communicate()[0]) for _ in range(3)]
    return {key: min(row[key] for row in rows) for key in rows[0]}


def together(folder: Path, place: str, count: int) -> dict[str, float]:
    """Memory per process while `count` of them hold the model."""
    processes = [spawn(folder, place, wait=True) for _ in range(count)]

    def ask(process: subprocess.Popen[str], line: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line)
        process.stdin.flush()
        return process.stdout.readline()

    for process in processes:
        ask(process, "")
    rows = [json.loads(ask(process, "measure\n")) for process in processes]
    for process in processes:
        process.communicate("end\n")
    return {key: sum(row[key] for row in rows) / count for key in ("private", "proportional")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=500, help="size of the weights in MB (default 500)")
    parser.add_argument("--processes", type=int, default=20, help="processes over one bundle (default 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", choices=PLACES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.folder, args.child, args.wait)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, args.mb)
        rows = {place: alone(folder, place) for place in PLACES}
        shared = together(folder, "low-memory", args.processes)
        size = (folder / "chain.genai").stat().st_size
    if args.json:
        print(json.dumps({"bytes": size, "alone": rows, "together": {"processes": args.processes, **shared}}))
        return
    table = Table(title=f"Opening {size / 1e6:.0f} MB of fp32 weights")
    for heading in ("", "load", "ratio", "private MB", "proportional MB", "peak MB"):
        table.add_column(heading, justify="right")
    names = {"inside": "onnxruntime, weights inside", "low-memory": "bundle, --low-memory", "packed": "bundle, packed"}
    for place, row in rows.items():
        figures = [f"{row[key] / 1e6:.1f}" for key in ("private", "proportional", "peak")]
        ratio = row["load_s"] / rows["inside"]["load_s"]
        table.add_row(names[place], f"{row['load_s'] * 1e3:.0f} ms", f"{ratio:.2f}", *figures)
    figures = [f"{shared[key] / 1e6:.1f}" for key in ("private", "proportional")]
    table.add_row(f"each of {args.processes}, --low-memory, after a run", "", "", *figures, "")
    Console().print(table)


if __name__ == "__main__":
    main()
