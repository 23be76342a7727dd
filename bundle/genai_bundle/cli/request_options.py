# SPDX-License-Identifier: Apache-2.0
"""A request's options on the command line: declared once, for every command that generates."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from genai_bundle.errors import UsageError

DECLARED: dict[str, tuple[Any, str, str]] = {
    "max_tokens": (int, "N", "At most this many new tokens."),
    "temperature": (float, "X", "0 takes the likeliest token; higher is more varied."),
    "top_p": (float, "X", "Sample from the likeliest tokens that hold this share."),
    "top_k": (int, "N", "Sample from this many likeliest tokens; 0: from all."),
    "min_p": (float, "X", "Leave out tokens below this share of the likeliest."),
    "typical_p": (float, "X", "Sample from the most typical tokens that hold this share."),
    "repetition_penalty": (float, "X", "Above 1: tokens that occurred are less likely."),
    "frequency_penalty": (float, "X", "Above 0: tokens of the answer are less likely, the more often they came."),
    "presence_penalty": (float, "X", "Above 0: tokens of the answer are less likely."),
    "no_repeat_ngram_size": (int, "N", "No N tokens in a row come twice."),
    "min_tokens": (int, "N", "At least this many new tokens before the text may end."),
    "seed": (int, "N", "The same seed gives the same tokens."),
    "stop": (list[str], "TEXT", "End before this text; may be repeated."),
    "logit_bias": (list[str], "ID=X", "Add X to the score of a token; may be repeated."),
    "bad_words": (list[str], "TEXT", "Never write this; may be repeated."),
    "ignore_eos": (bool, "", "Go on behind the token that ends a text."),
}
"""name -> type, what stands for its value in the help, help"""


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, with a parameter for every option in place of its parameter `options`: a dict of those given."""

    @functools.wraps(command)
    def asked(**given: Any) -> None:
        options = {name: _value(name, given.pop(name)) for name in DECLARED}
        command(**given, options={name: value for name, value in options.items() if value is not None})

    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += map(_parameter, DECLARED) if parameter.name == "options" else [parameter]
    asked.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    asked.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return asked


def _parameter(name: str) -> inspect.Parameter:
    kind, metavar, text = DECLARED[name]
    spelled = f"--{name.replace('_', '-')}"
    flag, default = (True, False) if kind is bool else (False, None)
    option = typer.Option(spelled, help=text) if flag else typer.Option(spelled, metavar=metavar, help=text)
    annotation = Annotated[kind if flag else kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _value(name: str, given: Any) -> Any:
    """What a request takes, of what the command line gave; None where that is nothing."""
    if name == "logit_bias" and given:
        return dict(_bias(text) for text in given)
    return given or None if isinstance(given, list | bool) else given


def _bias(text: str) -> tuple[int, float]:
    id_, _, bias = text.partition("=")
    try:
        return int(id_), float(bias)
    except ValueError:
        raise UsageError(f"--logit-bias {text!r}: expected ID=X, such as 42=-1.5") from None
