# SPDX-License-Identifier: Apache-2.0
"""A folder of OpenVINO GenAI: one decoder as a stateful model, its tokenizer as models too.

That runtime feeds ids, a mask, positions and `beam_idx`; caches live inside the model. Reading the graph and turning
its caches into variables is what the runner's OpenVINO backend does too: this is the one target that asks an engine.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any

from genai_bundle.bundle import Bundle
from genai_bundle.errors import UsageError
from genai_bundle.exports import Plan, as_json, common_losses, papers
from genai_bundle.exports.adapters import fix_adapter, other_adapters
from genai_bundle.exports.generator import Generator, chosen, generator, lost_draft
from genai_bundle.exports.rewiring import rewire
from genai_bundle.exports.text import generation_config, text_files
from genai_bundle.records import WEIGHTS_FOLDER
from genai_bundle.writer import BLOCK, Shard

if TYPE_CHECKING:
    import onnx

TARGET = "openvino"
TITLE = "a folder of OpenVINO GenAI"

ROLES = {"ids": "input_ids", "mask": "attention_mask", "positions": "position_ids"}
"""What it feeds, by our word and by its own, beside `beam_idx`."""

DERIVED = ("last", "total", "len", "capacity")
"""What can be worked out inside the graph."""

TYPE = "decoder"
"""The runtime wants a word for the family, and does nothing else for one that it does not know."""


def plan(bundle: Bundle, variant: str, adapter: str | None = None) -> Plan:
    """The folder of a bundle that is a decoder. Raises UsageError for what the runtime cannot do."""
    form = chosen(bundle.manifest, variant, engine="openvino")
    found = generator(bundle, form)
    _check(bundle, found)
    mask = found.port("mask") or ROLES["mask"]
    model = fix_adapter(bundle, found.graph, bundle.graph(found.file), adapter)
    rewire(model, found, mask)
    files = text_files(bundle)
    with _engine():
        written = _models(bundle, found, model, mask, files)
    config = {"config.json": as_json(_config(found)), "generation_config.json": as_json(generation_config(bundle))}
    lost = [
        *_lost(bundle),
        *lost_draft(bundle.manifest),
        *other_adapters(bundle.manifest, adapter),
        *common_losses(bundle.manifest, form),
    ]
    return Plan(form, {**config, **files, **papers(bundle), **written}, {}, lost)


def _check(bundle: Bundle, found: Generator) -> None:
    """The runtime knows these roles only, and caches that grow."""
    if bundle.manifest.text is None:
        raise _cannot("it has no tokenizer")
    for cache in found.caches:
        if cache.state.update != "append":
            raise _cannot(f"the state {cache.name!r} is kept by '{cache.state.update}', and does not grow")
    if not found.caches:
        raise _cannot("the decoder has no cache")
    unknown = sorted({*found.feeds.values()} - {*ROLES, *DERIVED})
    if unknown:
        raise _cannot(f"it does not know the state's field {unknown[0]!r}")
    if found.port("ids") is None:
        raise _cannot("no input of the decoder takes the new ids")
    for role in ROLES:
        port = found.port(role)
        if port and (found.ports.inputs[port].dtype, len(found.ports.inputs[port].dims)) != ("i64", 2):
            raise _cannot(f"the input {port!r} is not int64[batch, tokens]")


def _cannot(reason: str) -> UsageError:
    return UsageError(f"OpenVINO GenAI cannot run this bundle: {reason}", hint="'--to folder' takes any bundle")


@contextmanager
def _engine() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        hint = 'Try: pip install "genai-bundle[openvino-export]"'
        raise UsageError(f"the target {TARGET!r} needs a package that is missing: {error}", hint=hint) from error


class _Folder:
    """A temporary folder that goes when the last shard of its files does."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="genai-bundle-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def shard(self, path: Path) -> Shard:
        size = path.stat().st_size
        return Shard(size, [(start, partial(self._read, path, start)) for start in range(0, size, BLOCK)])

    def _read(self, path: Path, start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(BLOCK)


def _models(
    bundle: Bundle, found: Generator, model: onnx.ModelProto, mask: str, text: Mapping[str, bytes]
) -> dict[str, Shard]:
    """The three models as the engine writes them, by way of a temporary folder that lives as long as the result."""
    from genai_runner.backends import _openvino_export as engine
    from genai_runner.backends.base import LoadOptions, StatePort, find_backend
    from genai_runner.probe import unfit

    for finding in unfit(model, find_backend(TARGET), LoadOptions()):
        raise _cannot(f"{found.file}: {finding}")
    weights = {path: bundle.view(path) for path in bundle.members if path.startswith(WEIGHTS_FOLDER)}
    states = [
        StatePort(past, present, cache.state.update, cache.state.axis)
        for cache in found.caches
        for past, present in cache.pairs.items()
    ]
    named = {port: ROLES[role] for role in ROLES if (port := mask if role == "mask" else found.port(role))}
    folder = _Folder()
    try:
        engine.write_decoder(model, weights, states, {**named, found.logits: "logits"}, folder.path)
    except engine.UnfitError as error:
        raise _cannot(str(error)) from error
    _write_tokenizer(text, folder.path)
    return {path.name: folder.shard(path) for path in sorted(folder.path.iterdir())}


def _write_tokenizer(text: Mapping[str, bytes], folder: Path) -> None:
    """openvino_tokenizers takes a tokenizer of transformers, which reads the files that go into the folder as well."""
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    from genai_runner.backends import _openvino_export as engine

    with TemporaryDirectory(prefix="genai-bundle-") as place:
        for name, data in text.items():
            (Path(place) / name).write_bytes(data)
        try:
            models = convert_tokenizer(PreTrainedTokenizerFast.from_pretrained(place), with_detokenizer=True)
        except Exception as error:  # it raises anything
            raise _cannot(f"openvino_tokenizers does not take its tokenizer: {error}") from error
    for name, model in zip(("openvino_tokenizer", "openvino_detokenizer"), models, strict=True):
        engine.write(model, folder / f"{name}.xml")


def _config(found: Generator) -> dict[str, Any]:
    vocabulary = found.ports.outputs[found.logits].dims[-1]
    return {
        "model_type": TYPE,
        **({"vocab_size": vocabulary} if isinstance(vocabulary, int) else {}),
        **({"max_position_embeddings": found.context} if found.context else {}),
    }


def _lost(bundle: Bundle) -> list[str]:
    text = bundle.manifest.text
    if text is None or text.template is None:
        return []
    return ["a bare prompt: the runtime puts it into the chat template unless apply_chat_template is False"]
