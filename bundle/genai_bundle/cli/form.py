# SPDX-License-Identifier: Apache-2.0
"""The options of ``run`` that say which form an answer has to have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from genai_bundle.errors import UsageError

if TYPE_CHECKING:
    from genai_runner import Grammar


def grammar(
    json_schema: str | None, regex: str | None, lark: Path | None, choices: list[str] | None
) -> dict[str, Grammar]:
    """The argument `grammar` of a request, where one of the options was given. A schema is a file's name, or JSON."""
    from genai_bundle.cli import values
    from genai_runner import Grammar

    given = [name for name, value in zip(NAMES, (json_schema, regex, lark, choices or None), strict=True) if value]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} are both given", hint="An answer has one form")
    if json_schema:
        inline = json_schema.lstrip().startswith("{")
        found = Grammar.json_schema(json_schema if inline else values.read_text(Path(json_schema)))
    elif regex:
        found = Grammar.regex(regex)
    elif lark:
        found = Grammar.lark(values.read_text(lark))
    elif choices:
        found = Grammar.choices(choices)
    else:
        return {}
    return {"grammar": found}


NAMES = ("--json-schema", "--regex", "--grammar", "--choice")
