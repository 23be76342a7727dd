# SPDX-License-Identifier: Apache-2.0
"""What building a quantised bundle takes, in memory and time.

    python benchmarks/build_memory.py                       # 1.5 B parameters in bf16, four shards, to int4
    python benchmarks/build_memory.py --layers 4 --form int8 --keep work

The checkpoint is random, of the shape of Qwen2-1.5B, and written here without torch. It is built in a fresh process
that has imported everything and made an empty session first. The figures are the growth of its anonymous memory
(RssAnon of /proc/self/status, looked at every 20 ms) over what it was then: pages that are the process's own. Pages of
the mapped checkpoint, of the bundle and of the temporary file beside it are not in it, as the system takes those back
when it needs them. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SHARDS = 4
SPECIAL = ["<unk>", "<s>", "</s>"]


def config(layers: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def tensors(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes, as transformers' Qwen2 has them."""
    width, inner, kv = 1536, 8960, 256
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (151936, width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", width), ("k", kv), ("v", kv)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, width)
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (width, width)
        shapes[f"{prefix}mlp.gate_proj.weight"] = shapes[f"{prefix}mlp.up_proj.weight"] = (inner, width)
        shapes[f"{prefix}mlp.down_proj.weight"] = (width, inner)
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (width,)
    return shapes | {"model.norm.weight": (width,)}


def write_checkpoint(folder: Path, layers: int) -> int:
    """Write the folder; its number of parameters. Matrices keep the scale of their input, norms are about one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(layers)), encoding="utf-8")
    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    shapes = tensors(layers)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    weight_map: dict[str, str] = {}
    rng = np.random.default_rng(0)
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if size > total * len(groups) / SHARDS:
            groups.append([])
        groups[-1].append(name)
        size += int(np.prod(shape))
    for number, names in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        with (folder / file).open("wb") as target:
            write_shard(target, {name: shapes[name] for name in names}, rng)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def write_shard(target: BinaryIO, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """A safetensors file of bfloat16, a few rows at a time."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    target.write(len(raw).to_bytes(8, "little") + raw)
    for shape in shapes.values():
        scale = 1 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        left = int(np.prod(shape))
        while left:
            count = min(left, 1 << 22)
            numbers = rng.standard_normal(count, np.float32) * np.float32(scale)
            target.write((numbers + (len(shape) == 1)).astype(ml_dtypes.bfloat16).tobytes())
            left -= count


def anonymous() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))


class Watch:
    """The highest anonymous memory of each phase of a build."""

    def __init__(self) -> None:
        self.base = anonymous()
        self.phase, self.rows, self.done = "", [], threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def tell(self, step: str) -> None:
        """A new phase, but for the counted steps of one."""
        now = time.monotonic()
        word = step.split(" ")[0]
        if not self.rows or word != self.rows[-1]["word"]:
            self.rows.append({"word": word, "phase": step, "began": now, "peak": 0})
        print(f"{now - self.rows[0]['began']:6.0f} s  {step}", file=sys.stderr, flush=True)

    def _look(self) -> None:
        while not self.done.wait(0.02):
            now = anonymous() - self.base
            if self.rows:
                self.rows[-1]["peak"] = max(self.rows[-1]["peak"], now)

    def finish(self) -> list[dict[str, Any]]:
        self.done.set()
        self._thread.join()
        ends = [row["began"] for row in self.rows[1:]] + [time.monotonic()]
        return [
            {"phase": row["phase"], "seconds": end - row["began"], "peak": row["peak"]}
            for row, end in zip(self.rows, ends, strict=True)
        ]


def child(folder: Path, target: Path, form: str) -> None:
    """Build, and print what it took as JSON."""
    import onnx
    import onnxruntime as ort
    import torch._dynamo  # what the export imports late counts as the libraries' own
    import torch.onnx  # noqa: F401
    import transformers
    from onnx import helper

    from genai_bundle.builder.build import build
    from genai_bundle.builder.options import BuildOptions

    _ = transformers.AutoModelForCausalLM, transformers.Qwen2ForCausalLM  # imported at their first use

    port = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    empty = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [port],
                              [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])])  # fmt: skip
    model = helper.make_model(empty, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    watch = Watch()
    build(folder, target, BuildOptions(quantize=form, overwrite=True), watch.tell)
    print(json.dumps({"base": watch.base, "phases": watch.finish()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28, help="layers of the model (default 28: 1.5 B parameters)")
    parser.add_argument("--form", default="int4", help="how weights are stored (default int4)")
    parser.add_argument("--keep", type=Path, help="use this folder for checkpoint and bundle, and leave them there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.keep / "checkpoint", args.keep / "model.genai", args.form)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        parameters = 0
        if not (folder / "checkpoint" / "model.safetensors.index.json").is_file():
            parameters = write_checkpoint(folder / "checkpoint", args.layers)
        parameters = parameters or sum(int(np.prod(shape)) for shape in tensors(args.layers).values())
        command = [sys.executable, __file__, "--child", "--keep", str(folder), "--form", args.form]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ).stdout)
        found |= {"parameters": parameters, "bytes": (folder / "model.genai").stat().st_size}
    if args.json:
        print(json.dumps(found))
        return
    table = Table(title=f"{parameters / 1e9:.2f} B parameters to {args.form}: {found['bytes'] / 1e6:.0f} MB")
    for heading in ("phase", "seconds", "peak MB"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for row in found["phases"]:
        table.add_row(row["phase"][:60], f"{row['seconds']:.0f}", f"{row['peak'] / 1e6:.0f}")
    seconds = sum(row["seconds"] for row in found["phases"])
    table.add_row("all", f"{seconds:.0f}", f"{max(row['peak'] for row in found['phases']) / 1e6:.0f}", style="bold")
    Console().print(table)
    Console().print(f"The libraries' own: {found['base'] / 1e6:.0f} MB before the build began", highlight=False)


if __name__ == "__main__":
    main()
