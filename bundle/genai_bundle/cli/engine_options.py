# SPDX-License-Identifier: Apache-2.0
"""Which engine runs a bundle, and how: the options of every command that runs one, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

Backend = Annotated[str, typer.Option(metavar="NAME", help="The engine; 'auto': the fastest right one, measured once.")]
Variant = Annotated[
    str, typer.Option(metavar="NAME", help="'auto': the best for the backend; 'portable'; or a variant's name.")
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="Where the engine computes: cpu, cuda, tensorrt, dml, qnn, coreml ...")
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="'exact' or 'fast'; by default fast for graphs with quantised weights, else exact."
    ),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="Threads of the engine; by default the cores it may use.")
]
