# SPDX-License-Identifier: Apache-2.0
"""One case on one backend."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from genai_bundle.errors import UsageError

from ..backends.base import Backend, LoadOptions
from .case import Case

THREADS = 2  # with one thread some engines swallow the errors of a run

Word = Literal["right", "wrong", "missing"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`missing`: the engine refused, or broke down; `detail` is its message then, on one line."""

    word: Word
    detail: str = ""


def attempt(case: Case, backend: Backend, options: LoadOptions) -> Verdict:
    """Run the case, twice: what an engine keeps from a first run may spoil the second.

    UsageError where the backend knows no such device.
    """
    model = case.model()
    names = [port.name for port in model.graph.output]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = backend.load("probe", model.SerializeToString(), {}, replace(options, threads=THREADS))
            for _ in range(2):
                found = graph.run(case.feeds, names)
                outputs = [np.asarray(graph.array(found[name])) for name in names]
                if not case.is_right(outputs, options.precision):
                    return Verdict("wrong")
    except UsageError:  # such a device is not here: nothing is found out
        raise
    except Exception as error:  # an engine may raise anything
        return Verdict("missing", reason_of(error))
    return Verdict("right")


def reason_of(error: Exception) -> str:
    """What an engine's error says, in one line of at most 200 characters: most say what matters at the end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"… {text[-198:]}"
