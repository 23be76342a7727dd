# SPDX-License-Identifier: Apache-2.0
"""Everything that a build can be told. One record, so that the command, the recognisers and the builders agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from genai_bundle.errors import UsageError

FORMS = ("int4", "int8", "fp32", "fp16", "bf16")
"""What `quantize` and an override can ask for."""

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""The powers of two that ONNX Runtime's operator for quantised products takes."""


@dataclass(frozen=True)
class BuildOptions:
    """What the command line says beside source and target.

    details: `name`, `license`, `description`, `version` for the manifest. overwrite: replace the target.
    exporter: the only exporter to try; None for all that the kind of model knows, in their order.
    quantize: None (weights keep the type in which they are stored), "int4", "int8", "fp16" or "bf16".
    block_size: elements along K that share a scale. symmetric: zero points in the middle of the range.
    overrides: (pattern of weight names, `quantize` value), the last match counts. exclude: patterns of weights that
        keep their type.
    perplexity: a text file on which the change that quantisation makes is measured.
    adapters: folders of LoRA adapters by the name that a request gives. allow_lossy: drop keys that are not understood.
    dtype_suffix: which form of a folder's graphs to import, such as "q4"; None for the one without an ending.
    draft: a smaller model with the same tokenizer, to be packed as the draft of this one.
    heads: the checkpoint's own head for multi-token prediction as the draft: True, or the build fails; False, never;
        None, where there is one that can be proved, and no other draft is packed.
    """

    details: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    exporter: str | None = None
    quantize: str | None = None
    block_size: int = 32
    symmetric: bool = False
    overrides: Sequence[tuple[str, str]] = ()
    exclude: Sequence[str] = ()
    perplexity: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    allow_lossy: bool = False
    dtype_suffix: str | None = None
    draft: Path | None = None
    heads: bool | None = None

    @property
    def changes_weights(self) -> bool:
        """Whether the bundle may hold other numbers than its source."""
        return self.quantize is not None or bool(self.overrides)

    def check(self) -> None:
        """What is wrong with the options whatever the source is: asked before anything is read. Raises UsageError."""
        if self.draft is not None and self.heads:
            raise UsageError("a model has one draft: another model, or its own head", where="--draft")
        forms = [("--quantize", self.quantize), *(("--quantize-override", form) for _, form in self.overrides)]
        for where, form in forms:
            if form is not None and form not in FORMS:
                hint = f"Known: {', '.join(FORMS)}"
                raise UsageError(f"weights cannot be stored as {form!r}", where=where, hint=hint)
        if self.block_size not in BLOCK_SIZES:
            hint = f"It takes {', '.join(map(str, BLOCK_SIZES[:-1]))} or {BLOCK_SIZES[-1]}"
            raise UsageError(f"a block of {self.block_size} elements cannot be had", where="--block-size", hint=hint)
        self.perplexity_text()

    def perplexity_text(self) -> str | None:
        """The text that perplexities are measured on. Raises UsageError."""
        if self.perplexity is None:
            return None
        if not self.changes_weights:
            message = "measures what another form of weights changes, and they keep theirs"
            raise UsageError(message, where="--perplexity", hint="Give --quantize too")
        try:
            return self.perplexity.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot be read as text: {error}", where=str(self.perplexity)) from error
