# SPDX-License-Identifier: Apache-2.0
"""A request's options on the command line: declared once, for every command that generates."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from genai_bundle.errors import UsageError

Declared = dict[str, tuple[Any, str, str]]
"""name -> type, what stands for its value in the help, help"""

ONE: Declared = {
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
    "overflow": (str, "HOW", "'shift': let the oldest tokens go where the context is full; 'error' is the default."),
    "overflow_keep": (int, "N", "With --overflow shift: keep this many of the first tokens."),
    "ignore_eos": (bool, "", "Go on behind the token that ends a text."),
}
"""What shapes one answer."""

SEVERAL: Declared = {
    "logprobs": (int, "N", "With --json: log probabilities of each token and of the N likeliest."),
    "n": (int, "N", "Give this many answers."),
    "best_of": (int, "N", "Draw this many answers, give the best."),
    "num_beams": (int, "N", "Search for the likeliest answers with N beams, at temperature 0."),
    "num_beam_groups": (int, "N", "Let the beams search in N groups."),
    "diversity_penalty": (float, "X", "What a token costs for each beam of earlier groups that chose it."),
    "length_penalty": (float, "X", "The higher, the longer the answers that beams prefer; 1 by default."),
    "early_stopping": (str, "WHEN", "'true': beams end with as many answers; 'false' and 'never': with no better one."),
}
"""How many answers to give, and what of them."""


def with_options(command: Callable[..., None], *more: Declared) -> Callable[..., None]:
    """`command`, with a parameter for every option in place of its parameter `options`: a dict of those given."""
    declared = {name: entry for part in (ONE, *more) for name, entry in part.items()}

    @functools.wraps(command)
    def asked(**given: Any) -> None:
        options = {name: _value(name, given.pop(name)) for name in declared}
        command(**given, options={name: value for name, value in options.items() if value is not None})

    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        mine = [_parameter(name, *entry) for name, entry in declared.items()]
        parameters += mine if parameter.name == "options" else [parameter]
    asked.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    asked.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return asked


def _parameter(name: str, kind: Any, metavar: str, text: str) -> inspect.Parameter:
    spelled = f"--{name.replace('_', '-')}"
    flag, default = (True, False) if kind is bool else (False, None)
    option = typer.Option(spelled, help=text) if flag else typer.Option(spelled, metavar=metavar, help=text)
    annotation = Annotated[kind if flag else kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _value(name: str, given: Any) -> Any:
    """What a request takes, of what the command line gave; None where that is nothing."""
    if name == "logit_bias" and given:
        return dict(_bias(text) for text in given)
    if name == "early_stopping":
        return {"true": True, "false": False}.get(given, given)
    return given or None if isinstance(given, list | bool) else given


def _bias(text: str) -> tuple[int, float]:
    id_, _, bias = text.partition("=")
    try:
        return int(id_), float(bias)
    except ValueError:
        raise UsageError(f"--logit-bias {text!r}: expected ID=X, such as 42=-1.5") from None
