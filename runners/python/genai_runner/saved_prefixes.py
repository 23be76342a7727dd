# SPDX-License-Identifier: Apache-2.0
"""States of prefixes that were computed once: `genai-bundle prefill`.

They lie in the bundle (packed_prefixes.py), or in the user's cache folder. There, a folder holds what one bundle
computed with one engine in one way; its name is a digest of all of that, and each file repeats it. A file is NumPy's
.npz, not compressed: `about` (JSON), `ids`, and the arrays of the states by number. The ids are read with the first
request, the states when a prompt begins with them.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from genai_bundle.errors import UsageError

from .backends.base import Array
from .body import Body
from .cache_folder import VARIABLE, cache_folder
from .prefix_cache import fits
from .state import Saved

FORMAT, PART, SUFFIX = 2, "prefixes", ".npz"
DAMAGED = (OSError, ValueError, LookupError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile)
"""What reading a file that was cut off, changed or made by somebody else may raise."""

SHOWN = 48
"""Characters of a prefix that are kept for lists."""

Arrays = Mapping[tuple[str, str], Array]
"""States of one prefix by state and past port."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """One prefix. `file`: its own, or the bundle that it lies in. `name`, `text`: for people.

    names: state and past port of each of its arrays, in their order. inside: the arrays, where it lies in the bundle.
    """

    id: str
    file: Path
    nbytes: int
    key: Mapping[str, Any]
    adapter: str | None
    ids: tuple[int, ...]
    names: tuple[tuple[str, str], ...]
    name: str
    text: str
    inside: Arrays | None = field(default=None, compare=False, repr=False)


class SavedPrefixes:
    """The prefixes of one loaded bundle. May be used from several threads. The one used last stays in memory.

    key: all that its states depend on beside ids and adapter. packed: those that lie in the bundle.
    """

    def __init__(self, key: Mapping[str, Any], packed: Sequence[Prefix] = ()) -> None:
        self.key: dict[str, Any] = json.loads(json.dumps(key))
        self.packed = tuple(packed)
        self._known: list[Prefix] | None = None
        self._last: tuple[Prefix, Arrays] | None = None
        self._lock = threading.Lock()

    def recall(self, body: Body, adapter: str | None, tokens: Sequence[int], held: int) -> int:
        """Let the body's states, which hold the first `held` tokens, hold more of them if a prefix does; how many."""
        with self._lock:
            if self._known is None:
                self._known = self._look()
            if not self._known or not fits(body) or any(group.length != held for group in body.states):
                return held
            names = {(group.name, port) for group in body.states for port in group.pairs}
            for prefix in list(self._known):
                count = min(len(prefix.ids), len(tokens) - 1)  # one is always left to run
                alike = prefix.adapter == adapter and set(prefix.names) == names
                if count <= held or not alike or list(prefix.ids[:count]) != list(tokens[:count]):
                    continue
                arrays = self._arrays(prefix, body)
                if arrays is not None:
                    _fill(body, arrays, count)
                    return count
        return held

    def save(self, adapter: str | None, ids: Sequence[int], arrays: Arrays, name: str, text: str) -> Prefix:
        """Write a file, in place of one for the same ids. UsageError where nothing can be written."""
        folder = self._folder()
        if folder is None:
            raise UsageError("there is no cache folder that can be written", hint=f"Set {VARIABLE} to one")
        digest = hashlib.sha256(json.dumps([adapter, *ids]).encode()).hexdigest()[:12]
        names = sorted(arrays)
        about = {"format": FORMAT, "key": self.key, "adapter": adapter, "states": names, "name": name, "text": text}
        members = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), "ids": np.array(ids, np.int64)}
        members |= {str(number): _plain(arrays[one]) for number, one in enumerate(names)}
        file = folder / f"{digest}{SUFFIX}"
        folder.mkdir(mode=0o700, exist_ok=True)
        with NamedTemporaryFile("wb", dir=folder, suffix=".part", delete=False) as opened:
            part = Path(opened.name)
            try:
                np.savez(opened, allow_pickle=False, **members)  # type: ignore[arg-type]
            except BaseException:  # a full disk
                part.unlink()
                raise
        part.replace(file)
        with self._lock:
            self._known = self._last = None
        return read(file)

    def _folder(self) -> Path | None:
        above = cache_folder(PART)
        digest = hashlib.sha256(json.dumps([FORMAT, self.key], sort_keys=True).encode()).hexdigest()[:24]
        return above / digest if above else None

    def _look(self) -> list[Prefix]:
        """What the bundle and the folder hold of the same key, the longest first, of equals those in the bundle."""
        folder = self._folder()
        found = [one for one in (*self.packed, *(_prefixes(folder) if folder else ())) if one.key == self.key]
        return sorted(found, key=lambda one: -len(one.ids))

    def _arrays(self, prefix: Prefix, body: Body) -> Arrays | None:
        """The states in a prefix's file; None, and a warning, where it does not hold what it should."""
        if prefix.inside is not None:  # checked when the bundle was opened
            return prefix.inside
        if self._last is not None and self._last[0] == prefix:
            return self._last[1]
        forms = {(g.name, port): g.form(port, len(prefix.ids)) for g in body.states for port in g.pairs}
        try:
            with zipfile.ZipFile(prefix.file) as archive:
                numbered = enumerate(prefix.names)
                arrays = {one: _member(archive, str(number), *forms[one]) for number, one in numbered}
        except DAMAGED as error:
            _warn(prefix.file, error)
            self._known = [one for one in self._known or () if one != prefix]
            return None
        self._last = prefix, arrays
        return arrays


def every(bundle: str | None = None) -> list[Prefix]:
    """All prefixes in the cache folder, or those of the bundle with this id (without its prefixes)."""
    above = cache_folder(PART)
    folders = sorted(above.iterdir()) if above else []
    found = [one for folder in folders for one in _prefixes(folder)]
    return [one for one in found if bundle is None or one.key.get("bundle") == bundle]


def remove(prefix: Prefix) -> None:
    """Delete a prefix, and its folder if it was the last in it."""
    prefix.file.unlink(missing_ok=True)
    with suppress(OSError):
        prefix.file.parent.rmdir()


def shown(text: str) -> str:
    """The beginning of a text, for lists."""
    return " ".join(text.split())[:SHOWN]


def clear() -> None:
    """Delete everything, what cannot be read too."""
    above = cache_folder(PART)
    if above is not None:
        shutil.rmtree(above)


def read(file: Path) -> Prefix:
    """What a file says of itself. Raises one of DAMAGED where it is none of ours."""
    with zipfile.ZipFile(file) as archive:
        about = json.loads(_member(archive, "about", None, np.dtype(np.uint8)).tobytes())
        ids = _member(archive, "ids", None, np.dtype(np.int64))
    texts = [about["name"], about["text"], *([] if about["adapter"] is None else [about["adapter"]])]
    names = tuple((str(state), str(port)) for state, port in about["states"])
    if about["format"] != FORMAT:
        raise ValueError(f"format {about['format']}, not {FORMAT}")
    if not isinstance(about["key"], dict) or not all(isinstance(text, str) for text in texts) or not ids.size:
        raise ValueError("other content than a saved prefix has")
    found = tuple(int(one) for one in ids)
    known = about["key"], about["adapter"], found, names, about["name"], about["text"]
    return Prefix(file.stem, file, file.stat().st_size, *known)


def _prefixes(folder: Path) -> Iterator[Prefix]:
    if not folder.is_dir():
        return
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield read(file)
        except DAMAGED as error:
            _warn(file, error)


def _warn(file: Path, error: Exception) -> None:
    text = f"{file} is no saved prefix that can be used, and is left out ({error}); delete it and prefill again"
    warnings.warn(text, stacklevel=2)


def _fill(body: Body, arrays: Arrays, count: int) -> None:
    for group in body.states:
        index = (slice(None),) * group.spec.axis + (slice(0, count),)
        held = {port: np.ascontiguousarray(arrays[group.name, port][index]) for port in group.pairs}
        group.load(Saved(held, count))


def _plain(array: Array) -> Array:
    """The same bits in a type that NumPy itself has."""
    return array.view(_stored(array.dtype))


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype


def _member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> Array:
    """An array of an .npz file, of just this form (None: any one dim). Nothing is allocated before that is checked."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as opened:
        version = np.lib.format.read_magic(opened)
        if version != (1, 0) or info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name}: another kind of array than is written there")
        found, fortran, kind = np.lib.format.read_array_header_1_0(opened)
        if fortran or kind != _stored(dtype) or (len(found) != 1 if shape is None else found != shape):
            raise ValueError(f"{name}: {kind}{list(found)} in place of {dtype}{list(shape or ['n'])}")
        size = math.prod(found) * kind.itemsize
        if info.file_size != opened.tell() + size or size > Path(str(archive.filename)).stat().st_size:
            raise ValueError(f"{name}: {info.file_size} bytes, which is not its size")
        array = np.empty(found, kind)
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(opened.read(size), np.uint8)  # compares the checksum
    return array.view(dtype)
