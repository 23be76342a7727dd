# SPDX-License-Identifier: Apache-2.0
"""What a token costs: our runner beside the peer of each engine, on the same weights, in one run.

    python benchmarks/decode.py                      # 100 M random parameters, fp32 and int4, 128 and 2,048 tokens
    python benchmarks/decode.py --quick              # a small model and short contexts: whether it works
    python benchmarks/decode.py --rounds 5 --json

The model is a random one of Llama's shape, built by `genai-bundle build`'s own code and exported for each peer:
`--to openvino` for openvino_genai's LLMPipeline, `--to ort-genai` for onnxruntime-genai. Both sides of a pair have the
same threads and the like setting: exact is float32 arithmetic, fast what the engine does by itself. They take turns,
`--rounds` times; of each, the best prefill and the best median of the steps count. Ratios are ours over the peer's.
Needs the extras `build` and `peers`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

import genai_runner
from genai_bundle.builder.build import build
from genai_bundle.builder.options import BuildOptions
from genai_bundle.bundle import open_bundle
from genai_bundle.exports import choose, write
from genai_runner.cores import available_cores

SHAPE = {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 4096,
}  # fmt: skip
SMALL = {**SHAPE, "vocab_size": 2000, "hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 2}

OPENVINO_EXACT: dict[str, Any] = {
    "EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}  # fmt: skip
LEVELS = {"exact": 1, "fast": 4}
"""MatMulNBits: activations in float32, or in int8."""

Run = Callable[[int, int], tuple[float, list[float]]]
"""(tokens of context, steps) -> seconds until the first token, and of each step after it."""


@dataclass(frozen=True)
class Row:
    """Times in milliseconds."""

    engine: str
    weights: str
    precision: str
    context: int
    prefill: float
    peer_prefill: float
    step: float
    peer_step: float

    @property
    def ratios(self) -> tuple[float, float]:
        return self.prefill / self.peer_prefill, self.step / self.peer_step


def checkpoint(folder: Path, shape: dict[str, int]) -> int:
    """Write a random checkpoint with a tokenizer of one token a byte; its number of parameters."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    alphabet = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return sum(parameter.numel() for parameter in model.parameters())


def export(bundle: Path, folder: Path, to: str) -> Path:
    target = choose(to)
    with open_bundle(bundle) as opened:
        write(opened, target, target.plan(opened, "auto"), folder)
    return folder


def prompt(context: int) -> str:
    return "".join(chr(97 + place * place % 23) for place in range(context))


def ours(bundle: Path, backend: str, precision: str, threads: int) -> Iterator[Run]:
    with genai_runner.load(bundle, backend, precision=precision, threads=threads) as pipe:

        def run(context: int, steps: int) -> tuple[float, list[float]]:
            text = prompt(context)
            start = time.perf_counter()
            generator = pipe.generator(text, temperature=0, max_tokens=steps + 1)
            generator.generate_next_token()
            first, times = time.perf_counter() - start, []
            for _ in range(steps):
                start = time.perf_counter()
                generator.generate_next_token()
                times.append(time.perf_counter() - start)
            return first, times

        yield run


def openvino_peer(folder: Path, precision: str, threads: int) -> Iterator[Run]:
    import openvino as ov
    import openvino_genai

    exact = OPENVINO_EXACT if precision == "exact" else {}
    pipe = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=threads, **exact)

    def run(context: int, steps: int) -> tuple[float, list[float]]:
        ids = ov.Tensor(np.array([ids_of(folder, context)]))
        config = openvino_genai.GenerationConfig(max_new_tokens=steps + 1, do_sample=False, ignore_eos=True)
        raw = pipe.generate(ids, config).perf_metrics.raw_metrics
        return raw.m_times_to_first_token[0] / 1e6, [one / 1e6 for one in raw.m_durations]  # from microseconds

    yield run


def onnxruntime_peer(folder: Path, precision: str, threads: int) -> Iterator[Run]:
    import onnxruntime_genai

    settings = json.loads((folder / "genai_config.json").read_text())
    settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    (folder / "genai_config.json").write_text(json.dumps(settings))
    at_level(folder / "model.onnx", LEVELS[precision])
    model = onnxruntime_genai.Model(str(folder))

    def run(context: int, steps: int) -> tuple[float, list[float]]:
        ids = ids_of(folder, context)
        params = onnxruntime_genai.GeneratorParams(model)
        length = len(ids) + steps + 1
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        start = time.perf_counter()
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(np.array([ids], np.int32))
        generator.generate_next_token()
        first, times = time.perf_counter() - start, []
        for _ in range(steps):
            start = time.perf_counter()
            generator.generate_next_token()
            times.append(time.perf_counter() - start)
        return first, times

    yield run


def ids_of(folder: Path, context: int) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt(context)).ids
    return ids


def at_level(path: Path, level: int) -> None:
    """Set this accuracy level on every MatMulNBits, as our backend does for its own session."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            others = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*others, onnx.helper.make_attribute("accuracy_level", level)])
    path.write_bytes(model.SerializeToString())


def measure(sides: list[Run], context: int, steps: int, rounds: int) -> list[tuple[float, float]]:
    """(prefill, step) of each side: the best of rounds in which they take turns, after one that warms up."""
    best = [(float("inf"), float("inf")) for _ in sides]
    for turn in range(rounds + 1):
        for index, run in enumerate(sides):
            first, times = run(context, steps)
            if turn:
                best[index] = min(best[index][0], first), min(best[index][1], statistics.median(times))
    return best


def rows(folder: Path, options: argparse.Namespace, threads: int) -> Iterator[Row]:
    if not (folder / "checkpoint").is_dir():
        checkpoint(folder / "checkpoint", SMALL if options.quick else SHAPE)
    for weights in options.weights:
        bundle = folder / f"{weights}.genai"
        if not bundle.exists():
            build(folder / "checkpoint", bundle, BuildOptions(quantize=None if weights == "fp32" else weights))
        for engine in options.engines:
            peer = {"openvino": openvino_peer, "onnxruntime": onnxruntime_peer}[engine]
            to = {"openvino": "openvino", "onnxruntime": "ort-genai"}[engine]
            exported = folder / f"{weights}-{engine}"
            if not exported.is_dir():
                export(bundle, exported, to)
            for precision in ("exact", "fast"):
                if (engine, weights, precision) == ("onnxruntime", "fp32", "fast"):
                    continue  # on this engine that is the same as exact
                both = [ours(bundle, engine, precision, threads), peer(exported, precision, threads)]
                sides = [next(side) for side in both]
                for context in options.contexts:
                    pairs = measure(sides, context, options.steps, options.rounds)
                    (prefill, step), (peer_prefill, peer_step) = [(1e3 * a, 1e3 * b) for a, b in pairs]
                    yield Row(engine, weights, precision, context, prefill, peer_prefill, step, peer_step)
                for side in both:
                    next(side, None)
                del both, sides
                gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, short contexts, one round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side that count")
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 2048], help="tokens of the prompts")
    parser.add_argument("--steps", type=int, default=16, help="steps after the first token")
    parser.add_argument("--weights", nargs="+", choices=("fp32", "int4"), default=["fp32", "int4"])
    engines = ("openvino", "onnxruntime")
    parser.add_argument("--engines", nargs="+", choices=engines, default=engines)
    parser.add_argument("--folder", type=Path, help="keep all files here, and use what is here already")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.contexts = 1, [16, 64]
    threads = available_cores()
    with tempfile.TemporaryDirectory() as place:
        found = list(rows(options.folder or Path(place), options, threads))
    if options.json:
        print(json.dumps({"threads": threads, "rows": [{**asdict(row), "ratios": row.ratios} for row in found]}))
        return
    table = Table(title=f"{threads} threads; milliseconds, ours / the peer's")
    for name in ("engine", "weights", "precision", "context", "prefill", "ratio", "step", "ratio"):
        table.add_column(name, justify="left" if name in ("engine", "weights", "precision") else "right")
    for row in found:
        prefill, step = row.ratios
        table.add_row(
            row.engine, row.weights, row.precision, str(row.context),
            f"{row.prefill:.1f} / {row.peer_prefill:.1f}", f"{prefill:.2f}",
            f"{row.step:.2f} / {row.peer_step:.2f}", f"{step:.2f}",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
