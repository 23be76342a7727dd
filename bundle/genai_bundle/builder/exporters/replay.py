# SPDX-License-Identifier: Apache-2.0
"""What somebody's code does to a dictionary of torch tensors, done later and one weight at a time.

The code runs on tensors without content, and each operation is written down. A weight is made, when a bundle is written
or proven, by repeating the operations that lead to it on the checkpoint's bytes; so nothing is in memory before, and no
code but ours ever holds the mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from genai_bundle.builder.lazy import Weight, stored_weight
from genai_bundle.builder.safetensors import StoredTensor
from genai_bundle.errors import SourceError

_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _TORCH.items()}

Step = Callable[[], Any]


class _Recorder(TorchDispatchMode):  # type: ignore[misc]  # torch is taken as untyped
    """Remembers how each tensor came about."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: dict[int, tuple[Any, Step]] = {}  # the tensor is kept, so that its id stays its own

    def remember(self, tensor: Any, step: Step) -> None:
        self._steps[id(tensor)] = (tensor, step)

    def step(self, value: Any) -> Any:
        """What computes a tensor; any other value is itself."""
        if not isinstance(value, torch.Tensor):
            return value
        return self._steps[id(value)][1] if id(value) in self._steps else lambda: value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = (args, kwargs or {})
        if func._schema.is_mutable:
            raise ValueError(f"it changes a tensor in place ({func})")
        result = func(*args, **arguments[1])
        inputs = tree_map(self.step, arguments)

        def again() -> Any:
            given, named = tree_map(lambda one: one() if callable(one) else one, inputs)
            return func(*given, **named)

        if isinstance(result, torch.Tensor):
            self.remember(result, again)
        elif isinstance(result, list | tuple):
            for index, one in enumerate(result):
                self.remember(one, partial(_picked, again, index))
        return result


def _picked(step: Step, index: int) -> Any:
    return step()[index]


def rearranged(
    tensors: Mapping[str, StoredTensor], rearrange: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> dict[str, Weight]:
    """What `rearrange`, a function on dictionaries of torch tensors, makes of the checkpoint's tensors.

    Raises:
        SourceError: it does something that cannot be repeated later, such as looking at values.
    """
    recorder = _Recorder()
    given = {name: torch.empty(tensor.shape, dtype=_dtype(tensor), device="meta") for name, tensor in tensors.items()}
    weights = {name: stored_weight(tensor) for name, tensor in tensors.items()}
    names = {id(tensor): name for name, tensor in given.items()}
    for name, tensor in given.items():
        recorder.remember(tensor, partial(_read, weights[name]))
    try:
        with recorder:
            made = rearrange(dict(given))
    except (ValueError, KeyError, RuntimeError, NotImplementedError, IndexError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SourceError(f"its weights cannot be arranged: {reason}", where="config.json") from error
    found = {}
    for name, tensor in made.items():
        same = names.get(id(tensor))
        found[name] = weights[same] if same is not None else _later(name, tensor, recorder.step(tensor))
    return found


def _dtype(tensor: StoredTensor) -> torch.dtype:
    if tensor.dtype not in _TORCH:
        raise SourceError(
            f"has the dtype {tensor.dtype}, which cannot be built yet", where=f"{tensor.file}: {tensor.name}"
        )
    return _TORCH[tensor.dtype]


def _read(weight: Weight) -> torch.Tensor:
    array = np.array(weight.rows(slice(None)))  # a copy: torch does not know of read-only memory
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _later(name: str, tensor: torch.Tensor, make: Step) -> Weight:
    if tensor.dtype not in _NAMES:
        raise SourceError(f"its weight '{name}' is of type {tensor.dtype}", where="config.json")

    def rows(part: slice) -> NDArray[Any]:
        whole = make().contiguous()
        if whole.dtype == torch.bfloat16:
            array: NDArray[Any] = whole.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            array = whole.numpy()
        return array[part] if array.ndim else array

    return Weight(name, f"{name}, rearranged", _NAMES[tensor.dtype], tuple(tensor.shape), rows)
