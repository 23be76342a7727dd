# SPDX-License-Identifier: Apache-2.0
"""Host operations: what a pipeline needs and ONNX cannot say. One normative page each under spec/ops/.

There is no registry. `family.name@1` is the function `name_1` of the module `genai_runner.ops.family`, `name@1` the
function `name_1` of `genai_runner.ops.core`: a new operation is a new function. Each takes the environment and, by
name, its ports; it returns its outputs by name.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from genai_bundle.errors import UsageError, VersionError

from ..options import Options
from ..processors import Processor
from ..text import TextCodec

Value = Any  # a NumPy array, str, bytes or a list of messages; a literal of `with` as JSON holds it
Op = Callable[..., Mapping[str, Value]]

_NAME = re.compile(r"(?:([a-z][a-z0-9]*)\.)?([a-z][a-z0-9_]*)@([1-9][0-9]*)")


@dataclass
class Env:
    """What an operation may see of the request besides its ports."""

    text: TextCodec | None
    options: Options
    draws: dict[int, int] = field(default_factory=dict)  # stream -> draws made in this request
    processors: tuple[Processor, ...] = ()

    def step(self, stream: int) -> int:
        """The number of this draw on `stream`; counts it."""
        step = self.draws.get(stream, 0)
        self.draws[stream] = step + 1
        return step


def resolve(op: str) -> Op:
    """The function of an operation. Raises VersionError where this runner does not know it."""
    match = _NAME.fullmatch(op)
    family, name = (match[1] or "core", f"{match[2]}_{match[3]}") if match else ("", "")
    # `core` has no spelling of its own, so that each operation has one name.
    if match and match[1] != "core":
        module_name = f"{__name__}.{family}"
        try:
            found: Op | None = getattr(importlib.import_module(module_name), name, None)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                raise
            found = None
        if found is not None and found.__module__ == module_name:
            return found
    raise VersionError(f"this runner does not know the operation {op!r}", hint="A newer runner may")


def refuse(op: str, port: str, message: str, hint: str | None = None) -> NoReturn:
    """Raise the UsageError of a port's value."""
    raise UsageError(f"port {port!r} {message}", where=op, hint=hint)
