# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face checkpoint folder, read and checked without torch.

Everything a build takes from the folder passes through here, so that a folder with something missing is refused in a
second and not after a minute of exporting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genai_bundle.builder.json_file import read_object
from genai_bundle.builder.safetensors import StoredTensor, read_safetensors
from genai_bundle.builder.text_assets import TextAssets, read_text_assets
from genai_bundle.errors import SourceError

if TYPE_CHECKING:
    from genai_bundle.builder.adapters.folder import Adapter
    from genai_bundle.builder.prequantised import KeptBlocks

Json = Any


UNLIMITED = 2**31 - 1
"""The context of a model whose config states none: as many tokens as a 32-bit length counts."""

_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class Checkpoint:
    """What the folder says. `tensors` are views of mappings; nothing large is in memory."""

    path: Path
    config: Mapping[str, Json]
    context: int
    """The most tokens that the model was made for."""
    generation: Mapping[str, Json]
    """The manifest's `generation` section: what `generate()` would do with this folder, said explicitly."""
    text: TextAssets
    tensors: Mapping[str, StoredTensor]
    members: tuple[str, ...]
    """Names of the files that were read, sorted."""
    changed: Mapping[str, Any] = field(default_factory=dict)
    """What stands in the bundle for a weight that it holds in another form, as a lazy float32 tensor, by name."""
    adapter: Adapter | None = None
    """The adapter with which the model is asked, None for the model alone."""
    kept: Mapping[str, KeptBlocks] = field(default_factory=dict)
    """Matrices that the checkpoint itself holds quantised, by name; `tensors` have what they stand for."""
    heads: bool = True
    """Whether a head for multi-token prediction is built, where the checkpoint has one."""
    gguf: str | None = None
    """The member that holds the weights, where that is a GGUF file: transformers, when asked, reads them from it."""

    @property
    def adapter_name(self) -> str | None:
        return self.adapter.name if self.adapter is not None else None

    def digests(self, progress: Callable[[str], None] | None = None) -> dict[str, str]:
        """SHA-256, in hex, of every file that was read."""
        found = {}
        for name in self.members:
            if progress is not None:
                progress(f"digest of {name}")
            with (self.path / name).open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check the folder `path`.

    Raises:
        SourceError: names the file and the key that is missing, damaged or of a kind that cannot be built yet.
    """
    if not path.is_dir():
        raise SourceError(
            "is not a folder", where=str(path), hint="A checkpoint is a folder with config.json and model.safetensors"
        )
    config = read_object(path / "config.json", required=True) or {}
    _check_supported(config)
    context = _context(config)
    generation_config = read_object(path / "generation_config.json")
    generation = generation_defaults(generation_config or {})
    tensors, weight_files = _read_weights(path)
    kept: Mapping[str, KeptBlocks] = {}
    if config.get("quantization_config") is not None:
        from genai_bundle.builder.prequantised import unpacked

        tensors, kept = unpacked(tensors, config["quantization_config"])
    text = read_text_assets(path, config, generation_config or {})
    check_vocabulary(text, config)
    names = {"config.json", *weight_files, *text.files}
    if generation_config is not None:
        names.add("generation_config.json")
    return Checkpoint(path, config, context, generation, text, tensors, tuple(sorted(names)), kept=kept)


def text_config(config: Mapping[str, Json]) -> Mapping[str, Json]:
    """The language model's part of a config: the whole of it, or the section of a model with several towers."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _context(config: Mapping[str, Json]) -> int:
    """The length that the config states, under the name that the family gives it; a model without one has no limit."""
    text = text_config(config)
    key = next((name for name in _LENGTHS if text.get(name) is not None), None)
    if key is None:
        return UNLIMITED
    length = text[key]
    if type(length) is not int or length < 1:
        raise SourceError(
            f"{key} is {length!r}, expected the model's context as a number of tokens", where="config.json"
        )
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) == "dynamic":
        return int(length * _number(rope, "factor", 1.0, "config.json"))  # this one stretches beyond its first length
    return length


def plain_request(generation: Mapping[str, Json], tokens: int) -> dict[str, Json]:
    """The options of a golden test: those under which a bundle with these defaults gives its likeliest tokens."""
    off = {name: 0 for name in ("no_repeat_ngram_size",) if name in generation}
    return {"temperature": 0, "repetition_penalty": 1, **off, "max_tokens": tokens, "stop": []}


def generation_defaults(config: Mapping[str, Json]) -> dict[str, Json]:
    """Map `generation_config.json` to request options. Absent `do_sample` means greedy, as in transformers."""
    found: dict[str, Json] = {"temperature": 0.0}
    if config.get("do_sample") is True:
        # transformers samples with top_k 50 and temperature 1 where the file is silent (GenerationConfig's defaults).
        found = {"temperature": float(_number(config, "temperature", 1.0)), "top_k": int(_number(config, "top_k", 50))}
        shares = ("top_p", "min_p", "typical_p")
        found |= {key: float(_number(config, key, 0.0)) for key in shares if config.get(key) is not None}
    if config.get("repetition_penalty") is not None:
        found["repetition_penalty"] = float(_number(config, "repetition_penalty", 1.0))
    if config.get("no_repeat_ngram_size"):  # 0 is off
        found["no_repeat_ngram_size"] = int(_number(config, "no_repeat_ngram_size", 0))
    if config.get("max_new_tokens") is not None:
        found["max_tokens"] = int(_number(config, "max_new_tokens", 1))
    stop = config.get("stop_strings")
    if stop:
        found["stop"] = [stop] if isinstance(stop, str) else [str(text) for text in stop]
    return found


def _number(config: Mapping[str, Json], key: str, default: float, where: str = "generation_config.json") -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise SourceError(f"{key} is {value!r}, expected a number", where=where)
    return value


def _check_supported(config: Mapping[str, Json]) -> None:
    if not isinstance(config.get("model_type"), str):
        raise SourceError("model_type is missing", where="config.json", hint="This is no transformers checkpoint")


def _read_weights(path: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """All tensors by name, and the names of the files that hold them."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return _read_shards(path, read_object(index) or {}, index.name)
    single = path / "model.safetensors"
    if not single.is_file():
        pickled = next((name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
                        if (path / name).exists()), None)  # fmt: skip
        found = f"; {pickled} is a pickle, which runs code when it is read" if pickled else ""
        raise SourceError(
            f"model.safetensors is missing{found}", where=str(path), hint="Convert or download the safetensors form"
        )
    return read_safetensors(single), [single.name]


def _read_shards(path: Path, index: Mapping[str, Json], where: str) -> tuple[dict[str, StoredTensor], list[str]]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError("weight_map is missing or empty", where=where)
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise SourceError(f"places '{name}' in {file!r}, expected a file name of the same folder", where=where)
        if file not in shards:
            if not (path / file).is_file():
                raise SourceError(
                    f"the shard {file}, which holds '{name}', is missing", where=where, hint="Download the shard"
                )
            shards[file] = read_safetensors(path / file)
        if name not in shards[file]:
            raise SourceError(f"places '{name}' in {file}, which does not hold it", where=where)
    tensors = {name: shards[file][name] for name, file in weight_map.items()}
    return tensors, [where, *sorted(shards)]


def check_vocabulary(text: TextAssets, config: Mapping[str, Json]) -> None:
    """Every id that the tokenizer can give has a row in the embedding: a row too few is an out-of-range read later."""
    rows = text_config(config).get("vocab_size")
    if type(rows) is not int or rows < 1:
        raise SourceError(f"vocab_size is {rows!r}, expected the rows of the embedding", where="config.json")
    if text.largest_id >= rows:
        raise SourceError(
            f"holds the token id {text.largest_id}, but the embedding has {rows} rows (vocab_size in config.json)",
            where="tokenizer.json", hint="The tokenizer is another checkpoint's, or the embedding was not resized",
        )  # fmt: skip
    outside = [token for token in text.eos if token >= rows]
    if outside:
        raise SourceError(f"eos_token_id {outside[0]} is outside the {rows} rows", where="generation_config.json")
