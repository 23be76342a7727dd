# SPDX-License-Identifier: Apache-2.0
"""The table of one backend: looked up in the user's cache folder, and completed by running what it lacks."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genai_bundle.errors import UsageError

from ..backends.base import Backend, LoadOptions, find_backend
from ..cache_folder import cache_folder
from .case import Case
from .cases import CASES
from .trial import Verdict, attempt

PATIENCE_S = 60.0
"""A case takes milliseconds; an engine that has not answered by then hangs."""

FOLDER = "probe"
HOW = ("device", "device_options", "cpu_fallback", "precision")
"""The options of loading that a verdict depends on."""

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Table:
    """What is known of one version of one backend: a verdict for each case, by the case's name."""

    backend: str
    version: str
    device: str
    precision: str
    verdicts: Mapping[str, Verdict]


def version_of(backend: Backend) -> str | None:
    """The engine's version, where the backend tells it: a property `version`, which it may have."""
    version = getattr(backend, "version", None)
    return str(version) if version else None


def computes(backend: Backend) -> bool:
    """False for a fake, whose attribute `computes` says that its results are a script's: nothing is to be found out."""
    return bool(getattr(backend, "computes", True))


def support(
    backend: Backend,
    cases: Sequence[Case] = CASES,
    options: LoadOptions = LoadOptions(),  # noqa: B008  it is frozen
    *,
    refresh: bool = False,
    report: Report = lambda _done, _total: None,
) -> Table:
    """The verdicts of `cases` on a backend: those remembered, and the others by running them now.

    Nothing is remembered of a backend that tells no version, nor of an object whose name finds no backend.
    `refresh` runs all of them again. `report` is called with the number of cases done and in all.
    Raises UsageError where the backend knows no such device.
    """
    named = _is_named(backend)
    how = {name: getattr(options, name) for name in HOW}
    file = _file(backend, how) if named else None
    known = {} if refresh or file is None else _read(file)
    wanted = [case for case in cases if case.name not in known]
    if wanted:
        runs = _in_process(wanted, backend, LoadOptions(**how))
        if named and sys.executable:
            runs = _in_worker([case.name for case in wanted], backend.name, how)
        for done, (name, verdict) in enumerate(runs, 1):
            known[name] = verdict
            report(done, len(wanted))
        if file is not None:
            _write(file, backend, known)
    chosen = {case.name: known[case.name] for case in cases if case.name in known}
    return Table(backend.name, version_of(backend) or "unknown", options.device, options.precision, chosen)


def _is_named(backend: Backend) -> bool:
    """Whether its name finds a backend: then that one is tried, in its own process. Wrappers keep the name."""
    try:
        find_backend(backend.name)
    except UsageError:
        return False
    return True


def _in_process(cases: Sequence[Case], backend: Backend, options: LoadOptions) -> Iterator[tuple[str, Verdict]]:
    for case in cases:
        yield case.name, attempt(case, backend, options)


def _in_worker(cases: Sequence[str], backend: str, how: Mapping[str, Any]) -> Iterator[tuple[str, Verdict]]:
    """Run cases in a process of their own; where one ends it, another process goes on with the next."""
    left = list(cases)
    while left:
        asked = {"backend": backend, "options": how, "cases": left}
        for name, verdict in _lines(asked):
            left.remove(name)
            yield name, verdict
        if left:
            yield left.pop(0), Verdict("missing", "the engine crashed or hung")


def _lines(asked: Mapping[str, Any]) -> Iterator[tuple[str, Verdict]]:
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": paths},
    )
    watch = threading.Timer(PATIENCE_S, process.kill)
    with process, suppress(BrokenPipeError):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked))
        process.stdin.close()
        watch.start()
        for line in process.stdout:
            watch.cancel()
            answer = json.loads(line)
            if "refused" in answer:
                process.kill()
                raise UsageError(answer["refused"], hint=answer["hint"])
            yield answer["case"], Verdict(answer["word"], answer["detail"])
            watch = threading.Timer(PATIENCE_S, process.kill)
            watch.start()
    watch.cancel()


def _file(backend: Backend, how: Mapping[str, Any]) -> Path | None:
    """Where the verdicts are remembered: a name that another version, machine or probe does not share."""
    folder, version = cache_folder(FOLDER), version_of(backend)
    if folder is None or version is None:
        return None
    about = [backend.name, version, how, platform.platform(), platform.processor(), _digest(backend)]
    return folder / f"{backend.name}-{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]}.json"


def _digest(backend: Backend) -> str:
    """Of the cases, of what compares them, and of the backend's own module, with those beside it in this project."""
    digest = hashlib.sha256()
    files = sorted(Path(__file__).parent.rglob("*.py"))
    with suppress(TypeError, OSError):  # a class made at run time has no file
        own = Path(inspect.getfile(type(backend)))
        ours = own.parent == Path(inspect.getfile(LoadOptions)).parent
        files += sorted(own.parent.glob("*.py")) if ours else [own]
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(file: Path) -> dict[str, Verdict]:
    try:
        cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
        return {name: Verdict(one["word"], one["detail"]) for name, one in cases.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or not ours
        return {}


def _write(file: Path, backend: Backend, known: Mapping[str, Verdict]) -> None:
    """Another process may have found out more meanwhile: what it wrote is kept."""
    cases = {name: asdict(verdict) for name, verdict in (_read(file) | dict(known)).items()}
    content = {"backend": backend.name, "version": version_of(backend), "cases": cases}
    part = file.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):  # a full disk: it is found out again
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
        part.replace(file)
