# SPDX-License-Identifier: Apache-2.0
"""Hold back what torch and transformers print while they work."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from transformers.utils import logging as progress


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Their progress lines, notices and dumps say nothing to the person who builds a bundle. Exceptions pass."""
    bars, disabled = progress.is_progress_bar_enabled(), logging.root.manager.disable
    progress.disable_progress_bar()
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(_Muted(sys.stdout)),
            contextlib.redirect_stderr(_Muted(sys.stderr)),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if bars:
            progress.enable_progress_bar()


class _Muted:
    """A stream that drops what this thread writes. A command's own progress display writes from another."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
