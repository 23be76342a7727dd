# SPDX-License-Identifier: Apache-2.0
"""Folders of sentence-transformers with an ONNX graph: modules.json lists what follows the transformer.

The graph gives a vector for each token; pooling makes one of them, and the modules behind may scale it to length 1.
These become a graph of the importer's own, `pool`, which runs exactly as written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from genai_bundle.builder.json_file import read_object
from genai_bundle.errors import SourceError
from genai_bundle.importers import Assembled, Progress
from genai_bundle.importers.encoder import Embedding, Encoder, assemble_embedding, token_vectors, width
from genai_bundle.importers.foreign import Section, read_list, read_section
from genai_bundle.importers.graphs import SourceGraph, made_graph
from genai_bundle.importers.optimum_files import find_files
from genai_bundle.importers.plain import Array, Run
from genai_bundle.importers.pooling import POOL, Head, read_dense
from genai_bundle.importers.text import Text, read_text

if TYPE_CHECKING:
    from genai_bundle.builder.options import BuildOptions

LAYOUT = "a folder of sentence-transformers with an ONNX graph"

MODULES = "modules.json"

OLD = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
"""Flags by which earlier releases say the same, in the order in which several are joined."""


def recognises(path: Path) -> bool:
    return (path / MODULES).is_file() and find_files(path) is not None


def assemble(path: Path, options: BuildOptions, tell: Progress) -> Assembled:
    """Read the folder, run its graph, say it as a manifest. Raises SourceError."""
    modules = read_list(path / MODULES)
    configs = list(modules)
    notes: list[str] = []
    transformer, head, weights = _modules(path, modules, configs)
    files = find_files(path if (path / "onnx").is_dir() or not transformer else path / transformer)
    config = read_object(path / transformer / "config.json", required=True) or {}
    if files is None or "model" not in files.names:
        raise SourceError("there is no model.onnx", where=str(path), hint="Export the transformer with Optimum")
    tell("reading graphs")
    encoder = Encoder(files.read("model", "model", options.dtype_suffix))
    text = read_text(path / transformer, (), (config, {}))
    longest = _longest(path, path / transformer, config, configs, notes)
    _prompts(path, configs, notes)
    vectors = token_vectors(encoder.graph)
    size = head.size(width(encoder.graph, vectors))
    clip, kept = _clip(text, longest)
    steps = encoder.steps({vectors: "vectors"})
    steps[0]["out"] = {"ids": "whole"}
    steps.insert(1, {"run": "clip", "in": {"ids": "whole"}, "out": {"clipped": "ids"}})
    steps += [
        {"run": "pool", "in": {"vectors": "vectors"}, "out": {"pooled": "pooled"}},
        {"emit": {"embedding": "pooled"}},
    ]

    def plain(ids: Sequence[int], run: Run) -> Array:
        short = list(ids) if len(ids) <= longest else [*ids[: longest - kept], *ids[len(ids) - kept :]]
        return head.plain(encoder.plain(short, run)[vectors][0])[None]

    graphs = [clip, *encoder.graphs(), head.graph()]
    found = Embedding(encoder, text, graphs, steps, {"type": "f32", "dims": [1, size]}, plain)
    read = [path / transformer / "config.json", *weights]
    return assemble_embedding(
        path, found, config | {"max_position_embeddings": None}, configs, read, notes, options, tell
    )


def _modules(path: Path, modules: Sequence[Section], configs: list[Section]) -> tuple[str, Head, list[Path]]:
    """The transformer's folder, what follows it, and the weights of that."""
    transformer: str | None = None
    head, weights = Head(), list[Path]()
    for module in modules:
        module.ignore("idx", "name")
        kind, name = module.text("type").rpartition(".")[2], module.text("path")
        folder = module.file_in(path, "path") if name else path
        if kind in ("Pooling", "Dense"):
            configs.append(Section(read_object(folder / "config.json", required=True) or {}, f"{name}/config.json"))
        if kind == "Transformer" and transformer is None:
            transformer = name
        elif kind == "Pooling" and not head.modes:
            head = replace(head, modes=tuple(_modes(configs[-1])))
        elif kind == "Dense" and head.modes and not head.normalised:
            head = replace(head, layers=(*head.layers, read_dense(folder, configs[-1])))
            weights.append(folder / "model.safetensors")
        elif kind == "Normalize" and head.modes:
            head = replace(head, normalised=True)
        else:
            raise module.wrong("type", "a Transformer, then Pooling, then Dense, then Normalize")
    if transformer is None or not head.modes:
        raise SourceError("has no Transformer with Pooling behind it", where=MODULES)
    return transformer, head, weights


def _modes(config: Section) -> list[str]:
    config.ignore("word_embedding_dimension", "embedding_dimension", "include_prompt")
    if "pooling_mode" in config:
        named = config.value("pooling_mode")
        found = [named] if isinstance(named, str) else list(named)
        unknown = [mode for mode in found if mode not in POOL]
        if unknown:
            raise config.wrong("pooling_mode", f"of {', '.join(POOL)}")
        return found
    found = [mode for key, mode in OLD.items() if config.flag(key)]
    if not found:
        raise SourceError("states no way of pooling", where=config.file)
    return found


def _longest(path: Path, transformer: Path, config: dict[str, Any], configs: list[Section], notes: list[str]) -> int:
    """The most ids of a text; what is longer is cut, its last special ids excepted."""
    stated = read_section(transformer / "sentence_bert_config.json") or read_section(path / "sentence_bert_config.json")
    limits = [config.get("max_position_embeddings")]
    if stated is not None:
        configs.append(stated)
        limits.append(stated.count("max_seq_length") or None)
        stated.only("do_lower_case", False)
        stated.only("transformer_task", "feature-extraction")
        stated.only("module_output_name", "token_embeddings")
        stated.only("modality_config", TEXT_ONLY)
        stated.ignore("model_args", "processor_kwargs", "unpad_inputs", "message_format")
    settings = read_object(transformer / "tokenizer_config.json") or {}
    limits.append(settings.get("model_max_length"))
    known = [limit for limit in limits if type(limit) is int and 0 < limit < 1 << 30]
    if not known:
        raise SourceError("max_seq_length is missing", where="sentence_bert_config.json")
    notes.append(f"texts of more than {min(known)} ids are cut")
    return min(known)


TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


def _prompts(path: Path, configs: list[Section], notes: list[str]) -> None:
    """A prompt before each text would change every vector; one that has to be asked for is the caller's."""
    config = read_section(path / "config_sentence_transformers.json")
    if config is None:
        return
    configs.append(config)
    config.ignore("__version__", "similarity_fn_name", "model_type")
    config.only("default_prompt_name", None)
    if any((config.value("prompts") or {}).values()):
        notes.append("left out: prompts, which go before a text where a caller wants them")


def _clip(text: Text, longest: int) -> tuple[SourceGraph, int]:
    """A graph that cuts ids as the tokenizers library does, and how many special ids at the end it keeps."""
    assert text.assets is not None
    tokenizer = Tokenizer.from_str(text.assets.tokenizer.decode())
    tokenizer.no_padding()
    marks = tokenizer.encode("a").special_tokens_mask
    kept = next((index for index, special in enumerate(reversed(marks)) if not special), 0)
    graph = made_graph(
        "clip",
        f"clip (int64[1,N] ids) => (int64[1,M] clipped) <int64[1] most = {{{longest}}}, int64[1] kept = {{{kept}}},"
        " int64[1] zero = {0}, int64[1] axis = {1}> {"
        "  size = Shape <start = 1, end = 2> (ids)  short = Min (size, most)  cut = Sub (short, kept)"
        "  from = Sub (size, kept)  head = Slice (ids, zero, cut, axis)  tail = Slice (ids, from, size, axis)"
        "  clipped = Concat <axis = 1> (head, tail) }",
    )
    return graph, kept
