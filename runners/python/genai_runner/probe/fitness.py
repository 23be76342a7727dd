# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a graph an engine is known to get wrong, before it loads the graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from genai_bundle.errors import UsageError

from ..backends.base import Backend, LoadOptions
from .case import Case
from .cases import CASES
from .table import Table, computes, support
from .trial import Verdict
from .use import Use, uses

ANY = "*"
"""The operator of cases that any node may touch."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A node that `case` stands for, and what the engine makes of it."""

    node: str
    operator: str
    case: Case
    verdict: Verdict

    def __str__(self) -> str:
        what = f" ({self.case.what})" if self.case.what else ""
        fault = "is computed wrongly" if self.verdict.word == "wrong" else "is not available"
        return f"node {self.node!r}: {self.operator}{what} {fault}"


def unfit(model: onnx.ModelProto, backend: Backend, options: LoadOptions) -> list[Finding]:
    """The nodes of a model that `backend`, as installed here, computes wrongly or not at all; none for a fake.

    Only operators of the probe's table cost anything, and those of a version that was tried before only a look-up.
    """
    if not computes(backend):
        return []
    found = list(uses(model))
    present = {use.operator for use in found} | {ANY}
    cases = [case for case in CASES if case.operator in present and case.touches is not None]
    try:
        table = support(backend, cases, options)
    except UsageError:  # there is no such device: loading says it
        return []
    return list(_findings(found, table, cases))


def _findings(found: list[Use], table: Table, cases: list[Case]) -> Iterator[Finding]:
    faulty = [(case, verdict) for case in cases if (verdict := table.verdicts[case.name]).word != "right"]
    for use in found:
        for case, verdict in faulty:
            if case.operator in (ANY, use.operator) and case.touches is not None and case.touches(use):
                yield Finding(use.node.name or use.node.output[0], use.operator, case, verdict)
                break
