# SPDX-License-Identifier: Apache-2.0
"""Pages of a bundle's file while an engine packs its own copy of the weights: without this both are resident at once.

The mapping is read-only, so a page that is given back too early is read again, from the system's cache as a rule.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from genai_bundle.bundle import Bundle

EVERY_S = 0.02


@contextmanager
def given_back(bundle: Bundle, paths: Collection[str]) -> Iterator[None]:
    """Give the members' pages back now and then while this is open, and once more at its end."""
    done = threading.Event()

    def give_back() -> None:
        for path in paths:
            bundle.release(path)

    def work() -> None:
        while not done.wait(EVERY_S):
            give_back()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()
        give_back()
