# SPDX-License-Identifier: Apache-2.0
"""Hold back what torch and transformers print while they work."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from transformers.utils import logging as progress


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Their progress lines and version notices say nothing to the person who builds a bundle. Errors pass."""
    bars = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if bars:
            progress.enable_progress_bar()
