# SPDX-License-Identifier: Apache-2.0
"""`manifest.json` as records: `parse_manifest` checks the shape (rules M*, V*), `check.check_manifest` the sense.

The records themselves live in `records`; import them from here.
"""

from __future__ import annotations

from . import FORMAT_VERSION
from .canonical import parse
from .document import Node
from .errors import ManifestError, VersionError
from .names import FORMAT, LICENSE, WORD
from .prefixes import parse_prefix
from .records import (
    CHUNK_SIZE,
    MANIFEST_MEMBER,
    OPTION_TYPES,
    STATE_FIELDS,
    Adapter,
    Dim,
    Draft,
    Emit,
    FileEntry,
    Generate,
    GraphEntry,
    If,
    Input,
    Json,
    Loop,
    Manifest,
    Output,
    Prefix,
    Run,
    State,
    Step,
    StoredArray,
    Test,
    Text,
    Tolerance,
    Variant,
)
from .sections import (
    ELEMENT_TYPES,
    INPUT_TYPES,
    OUTPUT_TYPES,
    parse_adapter,
    parse_files,
    parse_generation,
    parse_graph,
    parse_input,
    parse_output,
    parse_state,
    parse_test,
    parse_text,
)
from .steps import parse_steps

__all__ = [
    "CHUNK_SIZE",
    "ELEMENT_TYPES",
    "FEATURES",
    "INPUT_TYPES",
    "OPTION_TYPES",
    "OUTPUT_TYPES",
    "STATE_FIELDS",
    "Adapter",
    "Dim",
    "Draft",
    "Emit",
    "FileEntry",
    "Generate",
    "GraphEntry",
    "If",
    "Input",
    "Json",
    "Loop",
    "Manifest",
    "Output",
    "Prefix",
    "Run",
    "State",
    "Step",
    "StoredArray",
    "Test",
    "Text",
    "Tolerance",
    "Variant",
    "parse_manifest",
]

FEATURES = ("domain:com.microsoft",)
"""What a bundle may require of this reader."""

_REQUIRED = ("format", "name", "files", "graphs", "inputs", "outputs", "steps")
_OPTIONAL = (
    *("requires", "version", "task", "description", "license", "authors", "source"),
    *("adapters", "prefixes", "state", "text", "generation", "tests"),
)


def parse_manifest(raw: bytes) -> Manifest:
    """Read a manifest's canonical bytes.

    Raises VersionError where another format version or an unknown feature is asked for, and ManifestError for
    everything else that is not a manifest; both name the place in the document and the rule.
    """
    document = parse(raw, where=MANIFEST_MEMBER)
    strict = _check_version(Node(document))
    top = Node(document, strict=strict).object(_REQUIRED, _OPTIONAL)
    return Manifest(
        format=document["format"],
        requires=tuple(document.get("requires", ())),
        name=top["name"].match(WORD, "a word such as tiny-stories"),
        version=top["version"].string(1) if "version" in top else None,
        task=top["task"].match(WORD, "a word such as text-generation") if "task" in top else None,
        description=top["description"].string() if "description" in top else None,
        license=top["license"].match(LICENSE, "an SPDX licence expression") if "license" in top else None,
        authors=tuple(author.string(1) for author in top["authors"].items()) if "authors" in top else (),
        source=_source(top["source"]) if "source" in top else {},
        files=parse_files(top["files"]),
        graphs={name: parse_graph(node) for name, node in top["graphs"].entries().items()},
        adapters=_adapters(top["adapters"]) if "adapters" in top else {},
        prefixes=_prefixes(top["prefixes"]) if "prefixes" in top else {},
        inputs={name: parse_input(node) for name, node in top["inputs"].entries().items()},
        outputs={name: parse_output(node) for name, node in top["outputs"].entries().items()},
        state={name: parse_state(node) for name, node in top["state"].entries().items()} if "state" in top else {},
        steps=parse_steps(top["steps"]),
        text=parse_text(top["text"]) if "text" in top else None,
        generation=parse_generation(top["generation"]) if "generation" in top else {},
        tests=tuple(parse_test(node) for node in top["tests"].items()) if "tests" in top else (),
        raw=raw,
    )


def _check_version(top: Node) -> bool:
    """Check `format` and `requires` before anything else. Returns whether unknown keys are errors."""
    if not isinstance(top.value, dict):
        top.fail("an object")
    if "format" not in top.value:
        raise ManifestError("the key 'format' is missing", where="manifest", rule="M7")
    found = top.value["format"]
    if not isinstance(found, str) or not FORMAT.fullmatch(found):
        raise VersionError(f'{found!r} is not a version such as "{FORMAT_VERSION}"', where="format", rule="V1")
    major, minor = (int(part) for part in found.split("."))
    own_major, own_minor = (int(part) for part in FORMAT_VERSION.split("."))
    if major != own_major:
        raise VersionError(
            f"format {found} is not supported, this reader supports {own_major}.0 to {own_major}.x",
            where="format",
            rule="V2",
            hint="Update genai-bundle" if major > own_major else None,
        )
    features = top.child("requires").items() if "requires" in top.value else []
    for index, feature in enumerate(features):
        if feature.string(1) not in FEATURES:
            raise VersionError(
                f"the bundle requires {feature.value!r}, which this reader does not know",
                where=feature.path,
                rule="V3",
                hint=f"Known: {', '.join(FEATURES)}. Update genai-bundle",
            )
        if feature.value in top.value["requires"][:index]:
            raise ManifestError(f"{feature.value!r} is listed twice", where=feature.path, rule="M9")
    return minor <= own_minor


def _adapters(node: Node) -> dict[str, Adapter]:
    return {name: parse_adapter(entry) for name, entry in node.entries(WORD).items()}


def _prefixes(node: Node) -> dict[str, Prefix]:
    return {name: parse_prefix(entry) for name, entry in node.entries(WORD).items()}


def _source(node: Node) -> dict[str, Json]:
    if not isinstance(node.value, dict):
        node.fail("an object")
    return dict(node.value)
