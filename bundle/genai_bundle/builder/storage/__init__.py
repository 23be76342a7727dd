# SPDX-License-Identifier: Apache-2.0
"""How weights are stored: the last pass over the portable graphs and their variants, spec/graphs.md, Stored weights.

    options -> plan: {weight name -> form} -> each graph rewritten to read that form

`blocks` is the arithmetic, `plan` decides, `spool` keeps what was computed off memory, `rewrite` changes the graphs.
"""

from __future__ import annotations
