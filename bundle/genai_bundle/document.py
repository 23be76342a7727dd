# SPDX-License-Identifier: Apache-2.0
"""A JSON document under reading: each value with its path, and the questions that a parser asks of it.

Every question either answers in the asked type or raises a ManifestError that says where, and what was expected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from .canonical import MAX_INTEGER
from .errors import ManifestError
from .names import NAME, at
from .records import Json

Word = TypeVar("Word", bound=str)


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place. `strict`: an object with fixed keys may not hold others (rule M8)."""

    value: Json
    path: str = ""
    strict: bool = True

    def fail(self, expected: str, rule: str = "M9") -> NoReturn:
        """Refuse this value."""
        shown = json.dumps(self.value, ensure_ascii=False)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
        raise ManifestError(f"{expected} was expected, not {shown}", where=self.path or "manifest", rule=rule)

    def refuse(self, message: str, rule: str) -> NoReturn:
        """Refuse this value with a message of its own."""
        raise ManifestError(message, where=self.path or "manifest", rule=rule)

    def child(self, key: str) -> Node:
        """The value under `key`, which is there."""
        return Node(self.value[key], at(self.path, key), self.strict)

    def object(self, required: Iterable[str] = (), optional: Iterable[str] = ()) -> dict[str, Node]:
        """An object with fixed keys, by key; keys that begin with `x-` are left out."""
        if not isinstance(self.value, dict):
            self.fail("an object")
        required, known = tuple(required), {*required, *optional}
        for key in required:
            if key not in self.value:
                self.refuse(f"the key {key!r} is missing", "M7")
        for key in self.value:
            if self.strict and key not in known and not key.startswith("x-"):
                raise ManifestError(
                    f"unknown key {key!r}",
                    where=self.path or "manifest",
                    rule="M8",
                    hint=f"Known here: {', '.join(sorted(known))}",
                )
        return {key: self.child(key) for key in self.value if key in known}

    def entries(self, pattern: re.Pattern[str] = NAME, least: int = 0) -> dict[str, Node]:
        """An object whose keys are names, by name."""
        if not isinstance(self.value, dict):
            self.fail("an object")
        if len(self.value) < least:
            self.fail("an entry")
        for key in self.value:
            if not pattern.fullmatch(key):
                self.refuse(f"{key!r} is not a name ({pattern.pattern})", "M10")
        return {key: self.child(key) for key in self.value}

    def items(self, least: int = 0, most: int | None = None) -> list[Node]:
        """A list."""
        if not isinstance(self.value, list):
            self.fail("a list")
        if len(self.value) < least or (most is not None and len(self.value) > most):
            self.fail(f"a list of {least}" + ("" if least == most else f" to {most}" if most else " or more"))
        return [Node(item, f"{self.path}[{index}]", self.strict) for index, item in enumerate(self.value)]

    def string(self, least: int = 0) -> str:
        """Any text of at least `least` characters."""
        if not isinstance(self.value, str) or len(self.value) < least:
            self.fail("a text")
        return self.value

    def match(self, pattern: re.Pattern[str], expected: str, rule: str = "M9") -> str:
        """A text that the pattern describes as a whole."""
        if not isinstance(self.value, str) or not pattern.fullmatch(self.value):
            self.fail(expected, rule)
        return self.value

    def name(self) -> str:
        """A name (rule M10)."""
        return self.match(NAME, "a name such as input_ids", "M10")

    def choice(self, words: Iterable[Word]) -> Word:
        """One of `words`."""
        known = {str(word): word for word in words}
        if not isinstance(self.value, str) or self.value not in known:
            self.fail(f"one of {', '.join(known)}")
        return known[self.value]

    def flag(self) -> bool:
        """A bool."""
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return self.value

    def integer(self, least: int = 0, most: int = MAX_INTEGER) -> int:
        """An integer, written without a point."""
        if type(self.value) is not int or not least <= self.value <= most:
            self.fail(f"an integer from {least} to {most}")
        return self.value

    def number(self, least: float | None = 0, most: float | None = None, *, above: bool = False) -> float:
        """A number; `above`: greater than `least`, not equal to it. A bound of None is none."""
        given = self.value
        right = isinstance(given, int | float) and not isinstance(given, bool)
        low = least is not None and (given < least or (above and given == least)) if right else False
        if not right or low or (most is not None and given > most):
            bound = "" if least is None else f" {'above' if above else 'of at least'} {least}"
            self.fail(f"a number{bound}" + (f" and at most {most}" if most is not None else ""))
        return float(given)
