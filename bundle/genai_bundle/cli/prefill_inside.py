# SPDX-License-Identifier: Apache-2.0
"""``genai-bundle prefill -o``: a copy of the bundle with one more saved prefix in it, or with fewer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genai_bundle.errors import UsageError

if TYPE_CHECKING:
    from genai_bundle.builder.prefixes import Data, Parts
    from genai_bundle.bundle import Bundle
    from genai_runner.backends.base import Array
    from genai_runner.prefill import Computed
    from genai_runner.saved_prefixes import Prefix


def check_target(file: Path, into: Path, overwrite: bool) -> None:
    """Refuse what could not be written, before anything is computed."""
    if file.is_dir() and file.resolve() in (into.resolve(), *into.resolve().parents):
        raise UsageError("lies inside the folder that is read", where=str(into), hint="Write it elsewhere")
    if into.is_dir() or (into.exists() and not overwrite):
        hint = "Choose another name" if into.is_dir() else "Choose another name, or replace it with --force"
        raise UsageError("exists already", where=str(into), hint=hint)
    if not into.parent.is_dir():
        raise UsageError(f"there is no folder {into.parent}", where=str(into), hint="Make it first")


def write(file: Path, into: Path, computed: Computed, key: Mapping[str, Any], *, overwrite: bool) -> Prefix:
    """Write `into`: the bundle with what was computed, which stands in it under the name of the result."""
    from genai_bundle.builder.prefixes import prefix_name, with_prefix
    from genai_bundle.bundle import open_bundle
    from genai_runner.packed_prefixes import packed_prefixes

    name = prefix_name(key, computed.adapter, computed.ids)
    entry = {"ids": list(computed.ids), "of": dict(computed.of), "computed": key}
    if computed.adapter is not None:
        entry["adapter"] = computed.adapter
    arrays = {place: _data(array) for place, array in computed.arrays.items()}
    with open_bundle(file) as bundle:
        _write(into, bundle, with_prefix(_parts(bundle), name, entry, arrays), overwrite)
    with open_bundle(into) as written:
        return next(one for one in packed_prefixes(written) if one.id == name)


def remove(file: Path, into: Path, names: Collection[str] | None, *, overwrite: bool, json: bool) -> None:
    """Write `into`: the bundle without these prefixes (None: without all)."""
    from genai_bundle.builder.prefixes import without_prefixes
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli import console
    from genai_bundle.cli.prefill import facts
    from genai_runner.packed_prefixes import packed_prefixes

    check_target(file, into, overwrite)
    with open_bundle(file) as bundle:
        held = packed_prefixes(bundle)
        known = {one.id for one in held}
        gone = known if names is None else set(names)
        if unknown := sorted(gone - known):
            hint = f"See genai-bundle prefill {file} --list"
            raise UsageError(f"the bundle holds no prefix {unknown[0]!r}", hint=hint)
        lines = [facts(one) for one in held if one.id in gone]
        _write(into, bundle, without_prefixes(_parts(bundle), gone), overwrite)
    if json:
        console.print_json({"removed": lines})
    else:
        typer.echo(f"removed {len(lines)}")


def _parts(bundle: Bundle) -> Parts:
    from genai_bundle.cli.copying import checked_parts

    manifest, members = checked_parts(bundle)
    return manifest, {**members}


def _write(into: Path, bundle: Bundle, parts: Parts, overwrite: bool) -> None:
    from genai_bundle.bundle import open_bundle
    from genai_bundle.cli import console
    from genai_bundle.records import SIGNATURE_MEMBER
    from genai_bundle.writer import write_bundle

    def accepted(path: Path) -> None:
        open_bundle(path).close()

    with console.progress("writing") as report:
        write_bundle(into, *parts, overwrite=overwrite, before_commit=accepted, progress=report)
    if SIGNATURE_MEMBER in bundle.members:
        console.note("the signature was left out: it is of the bundle as it was")


def _data(array: Array) -> Data:
    import numpy as np

    from genai_bundle.builder.prefixes import Data
    from genai_runner.values import DTYPES

    names = {dtype: name for name, dtype in DTYPES.items() if name != "audio"}
    stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return Data(names[array.dtype], stored.shape, stored.nbytes, lambda: stored.reshape(-1).view(np.uint8).data)
