# SPDX-License-Identifier: Apache-2.0
"""Foreign configurations, read so that nothing in them is passed over.

An importer asks a `Section` for the keys that it knows. What nobody asked for may change the meaning of a model, so
`settle` lists all of it in one error, or, where the user allows a lossy import, as dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from genai_bundle.builder.json_file import read_object
from genai_bundle.errors import SourceError

T = TypeVar("T")


class Section:
    """One object of a configuration file, which remembers the keys that were asked for.

    Each getter returns `default` (or None) where the key is absent or null, and raises SourceError naming file and key
    where the value is of another type.
    """

    def __init__(self, values: Mapping[str, Any], file: str, path: str = "") -> None:
        self.file = file
        self.path = path
        self._values = values
        self._asked: set[str] = set()
        self._inner: dict[str, list[Section]] = {}

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def names(self) -> list[str]:
        """All keys, which are not asked for by this."""
        return list(self._values)

    def where(self, key: str) -> str:
        """`genai_config.json: model.decoder.filename`, for errors."""
        return f"{self.file}: {self._full(key)}"

    # -- values ---------------------------------------------------------------------------------------------------

    def section(self, key: str) -> Section:
        """The object at `key`; an empty one where there is none. Its own keys have to be asked for."""
        if key not in self._inner:
            value = self._values.get(key)
            if value is not None and not isinstance(value, Mapping):
                raise self.wrong(key, "an object")
            self._inner[key] = [Section(value or {}, self.file, self._full(key))]
            self._asked.add(key)
        return self._inner[key][0]

    def sections(self, key: str) -> list[Section]:
        """The objects of the list at `key`."""
        if key not in self._inner:
            value = self._typed(key, list, "a list of objects", [])
            if not all(isinstance(item, Mapping) for item in value):
                raise self.wrong(key, "a list of objects")
            self._inner[key] = [
                Section(item, self.file, f"{self._full(key)}[{index}]") for index, item in enumerate(value)
            ]
        return self._inner[key]

    def value(self, key: str) -> Any:
        """Whatever stands there, with everything in it."""
        self._asked.add(key)
        return self._values.get(key)

    def peek(self, key: str) -> Any:
        """Whatever stands there, which is not asked for by this: to see whether it is understood."""
        return self._values.get(key)

    def text(self, key: str, default: str = "") -> str:
        return self._typed(key, str, "a text", default)

    def file_in(self, folder: Path, key: str) -> Path:
        """The file of that name in `folder`; a name that leads out of it is refused."""
        name = self.text(key)
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise self.wrong(key, "the name of a file in the folder")
        return folder / name

    def flag(self, key: str, default: bool = False) -> bool:
        return self._typed(key, bool, "true or false", default)

    def count(self, key: str, default: int = 0) -> int:
        """A whole number of 0 or more."""
        found = self._typed(key, int, "a whole number", default)
        if isinstance(found, bool) or found < 0:
            raise self.wrong(key, "a whole number of 0 or more")
        return found

    def number(self, key: str, default: float = 0.0) -> float:
        found = self.value(key)
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self.wrong(key, "a number")
        return float(found)

    def ids(self, key: str) -> list[int]:
        """Token ids: one, or a list of them."""
        found = self.value(key)
        items = found if isinstance(found, list) else [] if found is None else [found]
        if any(type(item) is not int or item < 0 for item in items):
            raise self.wrong(key, "token ids")
        return items

    def texts(self, key: str) -> list[str]:
        found = self._typed(key, list, "a list of texts", [])
        if not all(isinstance(item, str) for item in found):
            raise self.wrong(key, "a list of texts")
        return found

    # -- what has no place in a bundle --------------------------------------------------------------------------------

    def ignore(self, *keys: str) -> list[str]:
        """Keys that are understood and change nothing. Returns the full names of those that are there."""
        present = [key for key in keys if key in self._values]
        self._asked.update(present)
        return [self._full(key) for key in present]

    def only(self, key: str, *allowed: Any) -> None:
        """A key that changes nothing as long as it has one of these values; with another one it counts as unknown."""
        if key in self._values and self._values[key] in allowed:
            self._asked.add(key)

    def unknown(self) -> Iterator[str]:
        """Full names, with values where they are short, of everything that was not asked for."""
        for key, value in self._values.items():
            if key not in self._asked:
                shown = repr(value)
                yield self._full(key) + (f" = {shown}" if len(shown) <= 40 else "")
            for inner in self._inner.get(key, ()):
                yield from inner.unknown()

    # -- machinery ----------------------------------------------------------------------------------------------------

    def wrong(self, key: str, expected: str) -> SourceError:
        """The error to raise for a value that is not what it should be."""
        return SourceError(f"is {self._values.get(key)!r:.80}, expected {expected}", where=self.where(key))

    def _full(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _typed(self, key: str, kind: type[T], words: str, default: T) -> T:
        found = self.value(key)
        if found is None:
            return default
        if not isinstance(found, kind):
            raise self.wrong(key, words)
        return found


def read_section(path: Path, *, required: bool = False) -> Section | None:
    """The JSON object in a file; None where there is no file and none is `required`. Raises SourceError."""
    values = read_object(path, required=required)
    return None if values is None else Section(values, path.name)


def read_list(path: Path) -> list[Section]:
    """The objects of a file that holds a list of them. Raises SourceError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SourceError(f"is not JSON: {error}", where=path.name) from error
    return Section({"": values}, path.name).sections("")


def settle(sections: Sequence[Section], *, allow_lossy: bool) -> dict[str, list[str]]:
    """Ask all configurations what nobody asked for.

    Returns:
        The names of the dropped keys by file, for the manifest's `source.dropped`; empty where all is understood.

    Raises:
        SourceError: keys are not understood, all of which it lists, and the user has not allowed to drop them.
    """
    found = {section.file: list(section.unknown()) for section in sections}
    found = {file: keys for file, keys in found.items() if keys}
    if not found:
        return {}
    if not allow_lossy:
        listed = "; ".join(f"{file}: {', '.join(keys)}" for file, keys in found.items())
        raise SourceError(
            f"keys that are not understood, which may change what the model computes: {listed}",
            hint="Give --allow-lossy to build without them",
        )
    return {file: [key.partition(" = ")[0] for key in keys] for file, keys in found.items()}


def dropped_lines(dropped: Mapping[str, Sequence[str]]) -> list[str]:
    """What `settle` returned, for a report."""
    return [f"dropped, not understood: {key} ({file})" for file, keys in dropped.items() for key in keys]
