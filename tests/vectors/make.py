# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: T201  a program that prints
"""Writes the test vectors: `python tests/vectors/make.py`, or with `--check` compares them with those in the checkout.

Each is a folder `v1/valid/NAME` or `v1/invalid/NAME` with `vector.json` and a bundle, `bundle.genai` or `bundle/`.
The same sources give the same bytes on every machine.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vectors import containers, graphs, manifests, prefixes
from vectors.packing import in_order, pack
from vectors.vector import Vector, file_form, folder_form

ROOT = Path(__file__).resolve().parent / "v1"


def vectors() -> list[Vector]:
    """All vectors, by folder. A name is given once."""
    found = [*containers.valid(), *graphs.valid(), *_documents(), *containers.invalid(), *graphs.invalid()]
    names = [vector.folder for vector in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"vectors of one name: {', '.join(sorted(twice))}")
    return sorted(found, key=lambda vector: vector.folder)


def main(arguments: list[str]) -> int:
    """Writes or checks; returns the exit code."""
    made = {f"{vector.folder}/{path}": data for vector in vectors() for path, data in _content(vector)}
    found = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*")) if path.is_file()}
    wrong = sorted(made.keys() - found.keys()) + [
        name for name, path in found.items() if made.get(name) != path.read_bytes()
    ]
    if arguments == ["--check"]:
        for name in wrong:
            print(f"not as generated: tests/vectors/v1/{name}")
        return 1 if wrong else 0
    if arguments:
        print("usage: make.py [--check]")
        return 2
    shutil.rmtree(ROOT, ignore_errors=True)
    for name, data in made.items():
        target = ROOT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    print(f"{len(made)} files, {sum(map(len, made.values()))} bytes; {len(wrong)} changed")
    return 0


def _content(vector: Vector) -> list[tuple[str, bytes]]:
    return [("vector.json", vector.facts), *vector.files.items()]


def _documents() -> list[Vector]:
    """The vectors of manifest, grammar and ports: what matters is in the manifest, so any form will do."""
    cases = (*manifests.valid_cases(), *manifests.invalid_cases(), *prefixes.of_graphs())
    return [_from_case(case) for case in cases]


def _from_case(case: manifests.Case) -> Vector:
    # A shard would begin at byte 65536 of a file; the folder form has no gaps.
    sharded = any(path.startswith("weights/") for path in case.members)
    form = folder_form(case.bytes, case.members) if sharded else file_form(pack(in_order(case.bytes, case.members)))
    return Vector(case.name, case.title, form, case.rule, case.layer, case.schema, case.note)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
