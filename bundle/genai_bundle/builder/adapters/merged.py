# SPDX-License-Identifier: Apache-2.0
"""The source model with an adapter merged into it by PEFT itself: what a bundle's adapter is compared with."""

from __future__ import annotations

from typing import Any

import peft

from genai_bundle.builder.adapters.folder import Adapter
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.errors import SourceError


def merged(model: Any, adapter: Adapter) -> Any:
    """A model of transformers with the adapter's changes in its weights. The model given is changed."""
    try:
        with quiet():
            found: Any = peft.PeftModel.from_pretrained(model, str(adapter.path), torch_device="cpu")
            return found.merge_and_unload(safe_merge=True).eval()
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"peft cannot load it for this model: {reason}", where=str(adapter.path)) from error


def merged_name() -> str:
    """What merges, for the record."""
    return f"adapter merged by peft {peft.__version__}"
