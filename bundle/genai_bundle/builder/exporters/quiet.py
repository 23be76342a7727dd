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
    names = ("torch.onnx", "torch.export", "transformers", "onnxscript", "onnx_ir")
    bars = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            progress.enable_progress_bar()
