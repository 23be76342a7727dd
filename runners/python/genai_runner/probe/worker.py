# SPDX-License-Identifier: Apache-2.0
"""The process that a probe runs in: an engine that crashes takes only this one with it.

It reads one JSON object from stdin (backend, how to load, names of cases) and writes one line a case to stdout.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

from genai_bundle.errors import UsageError

from ..backends.base import LoadOptions, find_backend
from .cases import CASES
from .trial import attempt


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # engines print what they like
    asked = json.load(sys.stdin)
    backend = find_backend(asked["backend"])
    options = LoadOptions(**asked["options"])
    cases = {case.name: case for case in CASES}
    for name in asked["cases"]:
        try:
            answer = {"case": name, **asdict(attempt(cases[name], backend, options))}
        except UsageError as error:
            answer = {"refused": error.message, "hint": error.hint}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
