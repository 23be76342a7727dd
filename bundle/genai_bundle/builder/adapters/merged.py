# SPDX-License-Identifier: Apache-2.0
"""The source model with an adapter that PEFT itself applies: what a bundle's adapter is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft

from genai_bundle.builder.adapters.folder import Adapter
from genai_bundle.builder.exporters.quiet import quiet
from genai_bundle.errors import SourceError


def merged(model: Any, adapter: Adapter) -> Any:
    """A model of transformers with the adapter's changes in its weights. The model given is changed."""
    return _applied(model, adapter, lambda found: found.merge_and_unload(safe_merge=True))


def beside(model: Any, adapter: Adapter) -> Any:
    """The same where weights are there only while their module runs: the adapter's products are added to theirs."""
    return _applied(model, adapter, _filled(adapter), low_cpu_mem_usage=True)


def _filled(adapter: Adapter) -> Callable[[Any], Any]:
    """Give PEFT's modules their matrices, which it has moved to where the base's weights are: nowhere."""

    def fill(found: Any) -> Any:
        read = peft.load_peft_weights(str(adapter.path), device="cpu").items()
        own = {name.replace(".weight", ".default.weight"): matrix.float() for name, matrix in read if ".lora_" in name}
        found.load_state_dict(own, strict=False, assign=True)
        absent = [name for name, one in found.named_parameters() if ".lora_" in name and one.is_meta]
        if absent:
            raise ValueError(f"it did not load {absent[0]}")
        return found.get_base_model()

    return fill


def _applied(model: Any, adapter: Adapter, finish: Callable[[Any], Any], **options: Any) -> Any:
    try:
        with quiet():
            found = finish(peft.PeftModel.from_pretrained(model, str(adapter.path), torch_device="cpu", **options))
            return found.eval()
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"peft cannot load it for this model: {reason}", where=str(adapter.path)) from error


def name(*, large: bool) -> str:
    """What was done, for the record."""
    return f"adapter {'applied' if large else 'merged'} by peft {peft.__version__}"
