# SPDX-License-Identifier: Apache-2.0
"""What a token costs: our runner beside the peer of each engine, on the same weights, in one run.

    python benchmarks/decode.py                      # 100 M random parameters, fp32 and int4, 128 and 2,048 tokens
    python benchmarks/decode.py --quick              # a small model and short contexts: whether it works
    python benchmarks/decode.py --rounds 5 --json

The model is a random one of Llama's shape, built by `genai-bundle build`'s own code and exported for each peer:
`--to openvino` for openvino_genai's LLMPipeline, `--to ort-genai` for onnxruntime-genai. Both sides of a pair have the
same threads and the like setting: exact is float32 arithmetic, fast what the engine does by itself. It measures as
`genai-bundle bench` does: in processes of their own, by turns. Ratios are ours over the peer's.
Needs the extras `build` and `peers`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from genai_bundle.bench import find_peer
from genai_bundle.bench.measure import Wish, measure
from genai_bundle.builder.build import build
from genai_bundle.builder.options import BuildOptions
from genai_runner.cores import available_cores

SHAPE = {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 4096,
}  # fmt: skip
SMALL = {**SHAPE, "vocab_size": 2000, "hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 2}

PEERS = {"openvino": "openvino-genai", "onnxruntime": "onnxruntime-genai"}


@dataclass(frozen=True)
class Row:
    """Times in milliseconds; ratios of prefill and step, ours over the peer's, as the median of the rounds."""

    engine: str
    weights: str
    precision: str
    context: int
    prefill: float
    peer_prefill: float
    step: float
    peer_step: float
    ratios: tuple[float, float]


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


def bundles(folder: Path, weights: Sequence[str], *, quick: bool) -> Iterator[tuple[str, Path]]:
    """The model in each kind of weights, made in `folder` unless it is there."""
    if not (folder / "checkpoint").is_dir():
        checkpoint(folder / "checkpoint", SMALL if quick else SHAPE)
    for kind in weights:
        bundle = folder / f"{kind}.genai"
        if not bundle.exists():
            build(folder / "checkpoint", bundle, BuildOptions(quantize=None if kind == "fp32" else kind))
        yield kind, bundle


def rows(folder: Path, options: argparse.Namespace, threads: int) -> Iterator[Row]:
    for weights, bundle in bundles(folder, options.weights, quick=options.quick):
        for engine in options.engines:
            for precision in ("exact", "fast"):
                if (engine, weights, precision) == ("onnxruntime", "fp32", "fast"):
                    continue  # on this engine that is the same as exact
                turns = {"contexts": options.contexts, "steps": options.steps, "rounds": options.rounds}
                how = {"precision": precision, "threads": threads, "folder": folder}
                wish = Wish(backends=[engine], peers=[find_peer(PEERS[engine])], **turns, **how)
                found = measure(bundle, wish, lambda _: None)
                speeds = {(row.side, row.context): row for row in found.rows}
                for ratio in found.ratios():
                    both = [speeds[side, ratio.context] for side in (ratio.ours, ratio.peer)]
                    (prefill, step), (peer_prefill, peer_step) = [
                        (1e3 * one.prefill_s, 1e3 * one.step_s) for one in both
                    ]
                    ratios = 1 / ratio.prefill, 1 / ratio.decode
                    yield Row(engine, weights, precision, ratio.context, prefill, peer_prefill, step, peer_step, ratios)


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
        print(json.dumps({"threads": threads, "rows": [asdict(row) for row in found]}))
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
