# SPDX-License-Identifier: Apache-2.0
"""A folder of ONNX Runtime GenAI: one decoder, `genai_config.json`, tokenizer files.

That runtime feeds ids, a mask, positions and caches [batch, heads, tokens, size]. It knows neither `num_logits` nor the
lengths that GroupQueryAttention takes: these are worked out inside the graph from the mask, as its own builder does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genai_bundle.bundle import Bundle
from genai_bundle.errors import UsageError
from genai_bundle.exports import AUTO, PORTABLE, Plan, as_json, common_losses, papers
from genai_bundle.exports.adapters import fix_adapter, other_adapters
from genai_bundle.exports.generator import Cache, Generator, chosen, generator, lost_draft
from genai_bundle.exports.rewiring import rewire
from genai_bundle.exports.text import marked, sampling, special_id, text_files
from genai_bundle.exports.weights import Weights
from genai_bundle.ports import Port

if TYPE_CHECKING:
    import onnx

TARGET = "ort-genai"
TITLE = "a folder of ONNX Runtime GenAI"

MODEL = "model.onnx"
DATA = "model.onnx.data"
CONFIG = "genai_config.json"

TYPE = "decoder"
"""The runtime's word for a decoder of any family: the others differ in nothing that it feeds."""

KEYS, VALUES = ("past_key_names", "past_value_names"), ("present_key_names", "present_value_names")

ROLES = {"ids": "input_ids", "mask": "attention_mask", "positions": "position_ids"}
"""What it feeds, by our word and by its own."""

HEADS = {"GroupQueryAttention": "num_heads", "MultiHeadAttention": "num_heads", "Attention": "q_num_heads"}

NO_PADDING = -1
"""No id of any text: padding ids that end a prompt are hidden, and a prompt may end with a token that ends turns."""

UNKNOWN = (
    "max_tokens", "min_p", "typical_p", "frequency_penalty", "presence_penalty", "min_tokens", "stop",
)  # fmt: skip
"""Defaults of a request that the runtime has no key for."""

OPTION = "tokenizer.update_options(add_special_tokens='true')"

MAX_NAME = 63
"""Characters of a cache port's name, a limit of the runtime."""


def plan(bundle: Bundle, variant: str, adapter: str | None = None) -> Plan:
    """The folder of a bundle that is a decoder. Raises UsageError for what the runtime cannot do."""
    form = chosen(bundle.manifest, variant, engine="onnxruntime")
    try:
        return _plan(bundle, form, adapter)
    except UsageError:
        if variant != AUTO or form == PORTABLE:
            raise
        return _plan(bundle, PORTABLE, adapter)


def _plan(bundle: Bundle, form: str, adapter: str | None) -> Plan:
    _check_encoder(bundle)
    found = generator(bundle, form)
    _check_feeds(found)
    weights = Weights(bundle, DATA)
    model = weights.take(fix_adapter(bundle, found.graph, bundle.graph(found.file), adapter))
    mask = found.port("mask") or "attention_mask"
    rewire(model, found, mask)
    files = {**text_files(bundle), **papers(bundle)}
    config = {"model": _model(bundle, found, model, mask), "search": _search(bundle, found)}
    return Plan(
        form, {CONFIG: as_json(config), **files, **weights.files()}, {MODEL: model}, _lost(bundle, found, adapter)
    )


def _check_encoder(bundle: Bundle) -> None:
    """The runtime's encoders are Whisper's, which gives the decoder's cross caches itself, and one for a recurrent
    decoder; a bundle's decoder fills its cross cache in its first run, from what the encoder gives."""
    cross = [name for name, state in bundle.manifest.state.items() if state.update == "once"]
    if cross:
        raise _cannot(f"its decoder fills the cross cache {cross[0]!r} itself; there an encoder has to give it")


def _check_feeds(found: Generator) -> None:
    """The runtime knows these roles only, and caches that grow."""
    for cache in found.caches:
        if cache.state.update not in ("append", "shared"):
            raise _cannot(f"the state {cache.name!r} is kept by '{cache.state.update}', and not as a cache that grows")
    if not found.caches:
        raise _cannot("the decoder has no cache")
    unknown = sorted({*found.feeds.values()} - {*ROLES, "last", "total", "len", "capacity"})
    if unknown:
        raise _cannot(f"it does not know the state's field {unknown[0]!r}")
    if found.port("ids") is None:
        raise _cannot("no input of the decoder takes the new ids")
    dtypes = {found.ports.inputs[port].dtype for role in ("mask", "positions") if (port := found.port(role))}
    if len(dtypes) > 1 or not dtypes <= {"i64", "i32"}:
        raise _cannot(f"mask and positions are {' and '.join(sorted(dtypes))}")


def _cannot(reason: str) -> UsageError:
    hint = "'--to folder' takes any bundle"
    return UsageError(f"ONNX Runtime GenAI cannot run this bundle: {reason}", hint=hint)


def _model(bundle: Bundle, found: Generator, model: onnx.ModelProto, mask: str) -> dict[str, Any]:
    logits = found.ports.outputs[found.logits]
    vocabulary = logits.dims[-1] if len(logits.dims) == 3 else None
    if not isinstance(vocabulary, int):
        raise _cannot(f"its logits {list(logits.dims)} do not state the size of the vocabulary")
    if found.context is None:
        raise _cannot("no state has a capacity, so the length of its context is unknown")
    names, layers = _patterns(found.caches)
    heads, size = _heads(found)
    named = {ROLES[role]: port for role in ROLES if (port := mask if role == "mask" else found.port(role))}
    present = {value.name for value in model.graph.input}
    inputs = {word: port for word, port in named.items() if port in present}
    eos = list(bundle.manifest.text.eos) if bundle.manifest.text else []
    ids = {name: special_id(bundle, name) for name in ("bos_token", "pad_token")}
    padding = None if ids["pad_token"] in eos else ids["pad_token"]
    return {
        "type": TYPE,
        "vocab_size": vocabulary,
        "context_length": found.context,
        "eos_token_id": eos,
        **({"bos_token_id": ids["bos_token"]} if ids["bos_token"] is not None else {}),
        "pad_token_id": padding if padding is not None else NO_PADDING,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": MODEL,
            "head_size": size,
            "num_attention_heads": _query_heads(model, heads),
            "num_key_value_heads": heads,
            "num_hidden_layers": layers,
            "inputs": inputs | {key: names[key] for key in names if key.startswith("past")},
            "outputs": {"logits": found.logits} | {key: names[key] for key in names if key.startswith("present")},
        },
    }


def _patterns(caches: Sequence[Cache]) -> tuple[dict[str, str], int]:
    """The configuration's printf patterns by their keys, and the number of layers."""
    pairs = [pair for cache in caches for pair in cache.pairs.items()]
    for number in range(3):  # which number in a name is the layer's
        past, present = (_numbered([pair[side] for pair in pairs], number) for side in (0, 1))
        if past and present and len(past) == len(present) <= 2:
            layers = len(pairs) // len(past)
            if len(past) == 1:
                return {"past_names": past[0], "present_names": present[0]}, layers
            return dict(zip((*KEYS, *VALUES), (*past, *present), strict=True)), layers
    raise _cannot("the names of its caches do not count layers from 0 on")


def _numbered(names: Sequence[str], number: int) -> list[str]:
    """Patterns that make these names, in order, if each counts layers from 0 on; else nothing."""
    found: dict[str, list[int]] = {}
    for name in names:
        numbers = list(re.finditer(r"\d+", name))
        if number >= len(numbers) or len(name) > MAX_NAME or "%" in name:
            return []
        hit = numbers[number]
        found.setdefault(f"{name[: hit.start()]}%d{name[hit.end() :]}", []).append(int(hit[0]))
    return list(found) if all(sorted(layers) == list(range(len(layers))) for layers in found.values()) else []


def _heads(found: Generator) -> tuple[int, int]:
    """Heads and their size, which the runtime takes to be the same in all caches."""
    ports = [found.ports.inputs[past] for cache in found.caches for past in cache.pairs]
    shapes = {_cache_dims(port) for port in ports}
    if len(shapes) > 1:
        raise _cannot(f"its caches differ in heads or size: {', '.join(map(str, sorted(shapes)))}")
    return shapes.pop()


def _cache_dims(port: Port) -> tuple[int, int]:
    heads, size = (port.dims[-3], port.dims[-1]) if len(port.dims) in (4, 5) else (None, None)
    if not isinstance(heads, int) or not isinstance(size, int):
        raise _cannot(f"the cache {port.name!r} is {list(port.dims)}, not [batch, heads, tokens, size]")
    return heads, size


def _query_heads(model: onnx.ModelProto, heads: int) -> int:
    """As attention says it; where no node does, those of keys and values."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == HEADS.get(node.op_type) and attribute.i:
                return int(attribute.i)
    return heads


def _search(bundle: Bundle, found: Generator) -> dict[str, Any]:
    defaults: Mapping[str, Any] = sampling(bundle.manifest)
    shared = any(cache.state.update == "shared" for cache in found.caches)
    return {
        "do_sample": defaults["do_sample"],
        "temperature": float(defaults.get("temperature", 1.0)),
        "top_k": int(defaults.get("top_k", 0)),
        "top_p": float(defaults.get("top_p", 1.0)),
        "repetition_penalty": float(defaults.get("repetition_penalty", 1.0)),
        "no_repeat_ngram_size": int(defaults.get("no_repeat_ngram_size", 0)),
        **({"random_seed": bundle.manifest.generation["seed"]} if "seed" in bundle.manifest.generation else {}),
        "max_length": found.context,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": shared,
    }


def _lost(bundle: Bundle, found: Generator, adapter: str | None) -> list[str]:
    manifest, text = bundle.manifest, bundle.manifest.text
    lines = [f"generation.{key}: it has no such default" for key in UNKNOWN if key in manifest.generation]
    if text is None:
        lines.append("text: the bundle has no tokenizer, it takes and gives ids")
    else:
        if marked(bundle):
            lines.append(f"special tokens around a prompt: they need {OPTION}")
        if len(text.eos) > 1:
            lines.append("text.eos: whichever of its end tokens the model draws, the runtime gives the first")
    return [*lines, *lost_draft(manifest), *other_adapters(manifest, adapter), *common_losses(manifest, found.variant)]
