# SPDX-License-Identifier: Apache-2.0
"""What an installed engine computes rightly, wrongly or not at all, found out by running it: never taken from a list.

Engines ignore attributes that they do not know, saturate integers, and read past their buffers, without a word. So
micro graphs with known answers (`cases/`) are run once for each version of an engine (`table.py`, in a process of its
own: `worker.py`), remembered for the user, and matched with the nodes of a graph before that engine loads it
(`fitness.py`).
"""

from .case import Case
from .cases import CASES
from .fitness import Finding, unfit
from .table import Table, support
from .trial import Verdict

__all__ = ["CASES", "Case", "Finding", "Table", "Verdict", "support", "unfit"]
