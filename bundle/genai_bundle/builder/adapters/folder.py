# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter's folder, adapter_config.json and adapter_model.safetensors, read without torch or peft.

Strict: what the configuration asks for and is not known here would be left out of the result without a word. So a key
that is not known has to be off, and every tensor has to be half of a low-rank pair.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_bundle.builder import hub
from genai_bundle.builder.graph_files import adapter_member
from genai_bundle.builder.json_file import read_object
from genai_bundle.builder.safetensors import StoredTensor, read_safetensors
from genai_bundle.errors import SourceError, UsageError
from genai_bundle.names import WORD, is_path

Matrix = NDArray[np.float32]
Read = Callable[[], Matrix]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_READ = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"})
_TOLD = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_version"),
        *("revision", "runtime_config", "task_type", "qalora_group_size"),
        # Which modules, and how their weights lie: the tensors themselves and the graph say it.
        *("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform", "fan_in_fan_out"),
    }
)
"""Keys that change nothing in what the finished adapter computes, or only repeat it."""

_FLOATS = ("F32", "F16", "BF16")

_OFF: tuple[Any, ...] = (None, False, "none", "", [], {})

_PLAIN = (True, False, "gaussian", "eva", "orthogonal")
"""Of `init_lora_weights`, those that leave the base's own weights as they are."""

_COPY = re.compile(r"base_model\.model\.(?P<module>.+)\.base_layer\.weight")
"""A copy of the base's weight, which PEFT saves for an adapted output head."""

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")


@dataclass(frozen=True)
class LowRank:
    """What is added to a module's product: (x a) b, with `a` f32[inner, rank] and `b` f32[rank, outer], which includes
    the scaling. Both are read when asked for. `where` names the file and the tensor of `a`.
    """

    a: Read
    b: Read
    inner: int
    rank: int
    outer: int
    where: str


@dataclass(frozen=True)
class Adapter:
    """An adapter under the name that requests give. By the module's path in the base model: `pairs`, and `copies` of
    the base's own weights."""

    name: str
    path: Path
    pairs: Mapping[str, LowRank]
    copies: Mapping[str, StoredTensor]

    def digests(self) -> dict[str, str]:
        """SHA-256, in hex, of the files that were read."""
        found = {}
        for name in (CONFIG, WEIGHTS):
            with (self.path / name).open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found


def read_adapter(name: str, path: Path) -> Adapter:
    """Read and check the folder `path`, or the repository `org/name` of the hub's cache.

    Raises:
        UsageError: the name cannot be an adapter's, or the cache has no such repository.
        SourceError: names the file and the key or tensor that is missing, damaged or of a kind that cannot be built.
    """
    if not WORD.fullmatch(name) or not is_path(adapter_member(name, "x")):
        hint = "Letters, digits, `.`, `_` and `-`, such as --adapter pirate=folder/"
        raise UsageError(f"{name!r} cannot be an adapter's name", where="--adapter", hint=hint)
    if not path.exists() and hub.is_repository(path):
        path = hub.cached_snapshot(path.as_posix())
    config = _read_config(path)
    if not (path / WEIGHTS).is_file():
        pickled = (path / "adapter_model.bin").exists()
        found = "; adapter_model.bin is a pickle, which runs code when it is read" if pickled else ""
        raise SourceError(f"{WEIGHTS} is missing{found}", where=str(path), hint="Save the adapter as safetensors")
    halves: dict[str, dict[str, StoredTensor]] = {}
    copies: dict[str, StoredTensor] = {}
    for tensor in read_safetensors(path / WEIGHTS).values():
        if copied := _COPY.fullmatch(tensor.name):
            copies[copied["module"]] = tensor
            continue
        named = _TENSOR.fullmatch(tensor.name)
        if named is None or len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
            raise SourceError(
                f"is {tensor.dtype}{list(tensor.shape)}, and no low-rank matrix of a linear module",
                where=f"{path.name}/{WEIGHTS}: {tensor.name}", hint="Adapters of linear modules alone can be built",
            )  # fmt: skip
        halves.setdefault(named["module"], {})[named["half"]] = tensor
    if not halves:
        raise SourceError("holds no tensor", where=f"{path.name}/{WEIGHTS}")
    pairs = {module: _pair(module, pair, config, path) for module, pair in sorted(halves.items())}
    return Adapter(name, path, pairs, copies)


def weight_of(module: str, names: Iterable[str]) -> str | None:
    """Of a checkpoint's tensors the module's weight, which may lack the outermost parts of the path, or have more."""
    wanted = f"{module}.weight"
    weights = [name for name in names if name.endswith(".weight")]
    fits = [wanted] if wanted in weights else []
    fits = fits or [name for name in weights if wanted.endswith(f".{name}") or name.endswith(f".{wanted}")]
    return fits[0] if len(fits) == 1 else None


def check_base(adapter: Adapter, tensors: Mapping[str, StoredTensor]) -> None:
    """Compare an adapter with the tensors of a checkpoint, as far as these are its modules' weights as they are.

    Raises:
        SourceError: one has another shape, or is another than the adapter's own copy of it.
    """
    for module, pair in adapter.pairs.items():
        name = weight_of(module, tensors)
        if name is not None and sorted(tensors[name].shape) != sorted((pair.inner, pair.outer)):
            raise misfit(module, pair, tensors[name].shape)
    for module, copy in adapter.copies.items():
        name = weight_of(module, tensors)
        if name is None or not _same(copy, tensors[name]):
            raise SourceError(
                f"has a weight of its own for '{module}', which is not the base's",
                where=f"{adapter.path.name}/{WEIGHTS}: {copy.name}", hint="Merge it into the model, and build that",
            )  # fmt: skip


def _same(copy: StoredTensor, weight: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers; a few rows at a time, for an output head may be large."""
    from genai_bundle.builder.tensors import stored_array  # late: needs onnx-ir

    first, second = stored_array(copy), stored_array(weight)
    return first.shape == second.shape and all(
        np.array_equal(first[row : row + 1024].astype(np.float32), second[row : row + 1024].astype(np.float32))
        for row in range(0, len(first), 1024)
    )


def misfit(module: str, pair: LowRank, shape: Sequence[int]) -> SourceError:
    """The error for a module whose weight has another shape than the adapter's change of it."""
    found, wanted = (" x ".join(map(str, sorted(dims))) for dims in (shape, (pair.inner, pair.outer)))
    return SourceError(
        f"changes a matrix of {wanted}, and the base's '{module}' is one of {found}", where=pair.where,
        hint="The adapter was made for another base",
    )  # fmt: skip


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration, once nothing in it asks for more than low-rank pairs."""
    if not path.is_dir():
        raise SourceError(
            "is not a folder", where=str(path), hint=f"An adapter is a folder with {CONFIG} and {WEIGHTS}"
        )
    config = read_object(path / CONFIG, required=True) or {}
    where = f"{path.name}/{CONFIG}"
    if config.get("peft_type") != "LORA":
        raise SourceError(f"peft_type is {config.get('peft_type')!r}, and only LORA can be built", where=where)
    for key, value in config.items():
        if key not in _READ | _TOLD and value not in _OFF:
            raise SourceError(
                f"{key} is {value!r:.80}, which cannot be built yet", where=where,
                hint="Merge such an adapter into the model, and build that",
            )  # fmt: skip
    started = config.get("init_lora_weights", True)
    if started not in _PLAIN:
        raise SourceError(
            f"init_lora_weights is {started!r}, which changes the base's own weights", where=where,
            hint="Convert the adapter with peft's path_initial_model_for_weight_conversion",
        )  # fmt: skip
    for key in ("r", "lora_alpha"):
        if isinstance(config.get(key), bool) or not isinstance(config.get(key), int | float) or config[key] <= 0:
            raise SourceError(f"{key} is {config.get(key)!r}, expected a number above 0", where=where)
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or any(type(value) not in (int, float) for value in pattern.values()):
            raise SourceError(f"{key} is {pattern!r:.80}, expected numbers by module", where=where)
    return config


def _pair(module: str, halves: Mapping[str, StoredTensor], config: Mapping[str, Any], path: Path) -> LowRank:
    where = f"{path.name}/{WEIGHTS}: {next(iter(halves.values())).name}"
    if halves.keys() != {"A", "B"}:
        raise SourceError("has no partner: lora_A and lora_B come in pairs", where=where)
    down, up = halves["A"], halves["B"]
    rank, alpha = (_of_module(module, config, key) for key in ("r", "lora_alpha"))
    if not down.shape[0] == up.shape[1] == rank:
        message = f"the ranks are {down.shape[0]} and {up.shape[1]}, and {CONFIG} says {rank:g}"
        raise SourceError(message, where=where)
    scaling = np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return LowRank(_turned(down, np.float32(1)), _turned(up, scaling), down.shape[1], down.shape[0], up.shape[0], where)


def _of_module(module: str, config: Mapping[str, Any], key: str) -> float:
    """A module's rank or alpha: that of the first pattern that fits its path's end, as PEFT takes it."""
    patterns = config.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key]) or {}
    try:
        return float(next((patterns[one] for one in patterns if re.match(rf"(.*\.)?({one})$", module)), config[key]))
    except re.error as error:
        raise SourceError(f"a pattern is no regular expression: {error}", where=CONFIG) from error


def _turned(tensor: StoredTensor, factor: np.float32) -> Read:
    """The transposed matrix in float32, multiplied by `factor`."""

    def read() -> Matrix:
        from genai_bundle.builder.tensors import stored_array  # late: needs onnx-ir

        matrix: Matrix = stored_array(tensor).astype(np.float32).T * factor
        return np.ascontiguousarray(matrix)

    return read
