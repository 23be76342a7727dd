# SPDX-License-Identifier: Apache-2.0
"""Chat templates, rendered as Hugging Face transformers renders them. Normative text: spec/ops/text.chat.md.

A template is somebody else's program: it runs in Jinja's immutable sandbox and sees nothing but plain JSON data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from genai_bundle.errors import GenaiError, UsageError

Message = Mapping[str, Any]
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render_chat(
    template: str,
    *,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    **context: Any,
) -> str:
    """The text of a conversation.

    Args:
        messages: objects with at least `role`; keys that are None count as absent.
        tools: JSON schemas of the functions that the model may call.
        context: further variables of the template; the special tokens (`bos_token`, ...) come this way.

    Raises:
        UsageError: the template refuses the messages (`raise_exception`), or they are no messages.
        GenaiError: the template itself fails.
    """
    compiled = _compiled(template)
    chat = [_aliased(message) for message in _plain(_checked(messages))]
    variables = {"documents": None, **_plain(context), "tools": _plain(tools)}
    variables["add_generation_prompt"] = add_generation_prompt

    def render(arguments: Callable[[str], Any]) -> str:
        return _render(compiled, variables, [_with_arguments(message, arguments) for message in chat])

    try:
        return render(_Arguments)
    except _NeedsMappingError:
        return render(_parsed)
    except GenaiError:
        # It may insist on objects, or parse strings with a filter of another engine: then objects will do.
        with suppress(GenaiError):
            return render(_parsed)
        raise


def _render(compiled: jinja2.Template, variables: Mapping[str, Any], messages: list[dict[str, Any]]) -> str:
    where = "chat template"
    try:
        return compiled.render(variables, messages=messages)
    except _NeedsMappingError:
        raise
    except _RefusedError as error:
        raise UsageError(str(error), where=where) from error
    except Exception as error:  # a template can fail in any way that an expression can
        line = _line(error)
        place = f"{where}, line {line}" if line else where
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        hint = "Compare the messages with what this model's template reads"
        raise GenaiError(f"{kind}{error}".rstrip("."), where=place, hint=hint) from error


def _line(error: BaseException) -> int | None:
    """The line of the template that failed: Jinja gives its frames the file name `<template>`."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _checked(messages: Any) -> Sequence[Message]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise UsageError(f"messages are a list of objects, got {type(messages).__name__}", where="chat")
    if not messages:
        raise UsageError("the conversation is empty", where="chat", hint="Give at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            got = type(message).__name__
            raise UsageError(f"a message is an object with a role, got {got}", where=f"messages[{index}]")
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _plain(value: Any) -> Any:
    """A copy made of JSON types only, so that no method of a caller's object is within a template's reach.

    What has no JSON form (the bytes of an image part) becomes `<type>`: templates only ask whether the key is there.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    for base in (str, int, float):
        if isinstance(value, base):
            return base.__str__(value) if base is str else base(value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(map(_plain, value))
    return f"<{type(value).__name__}>"


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning goes by three names in the field; templates read one or another."""
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


# Tool-call arguments come as a JSON string (as in OpenAI's API) or as an object. Some templates print them, others
# look inside. Which kind a template is shows when it runs: the string given to it tells when somebody looks inside.


class _NeedsMappingError(Exception):
    """The template looks inside arguments that were given as a JSON string."""


class _Arguments(str):
    """Arguments as a JSON string that notices being used as an object."""

    __slots__ = ()

    def __iter__(self) -> NoReturn:
        raise _NeedsMappingError

    @property
    def items(self) -> NoReturn:
        raise _NeedsMappingError

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, str):
            raise _NeedsMappingError
        return str.__getitem__(self, key)


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        message = f"arguments {arguments[:60]!r} are not a JSON object, which this template needs"
        raise UsageError(message, where="tool_calls")
    return value


def _with_arguments(message: dict[str, Any], turn: Callable[[str], Any]) -> dict[str, Any]:
    """The message with `turn` applied to the arguments of its tool calls that are strings."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_call_with_arguments(call, turn) for call in calls]}


def _call_with_arguments(call: Any, turn: Callable[[str], Any]) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _call_with_arguments(call["function"], turn)}
    return {**call, "arguments": turn(call["arguments"])} if isinstance(call.get("arguments"), str) else call


# The environment


class _RefusedError(TemplateError):
    """The template called `raise_exception`."""


def _raise_exception(message: Any) -> NoReturn:
    raise _RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # local time, as the reference does


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _is_iterable(value: Any) -> bool:
    """Jinja's test tries to iterate, which must not count as looking inside."""
    return isinstance(value, str | Iterable)


def _items(value: Any) -> Any:
    if isinstance(value, _Arguments):
        raise _NeedsMappingError
    if isinstance(value, jinja2.Undefined):
        return iter(())
    if not isinstance(value, Mapping):
        raise TypeError("Can only get item pairs from a mapping.")
    return iter(value.items())


class _Dict:
    """`dict` for templates: callable, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` for templates, without the names that lead into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # As in Jinja itself: all positional, so that a template may say namespace(self=...).
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _Namespace._check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no attribute with a leading underscore, got {name!r}")


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote; for rendering the marks are nothing."""

    tags = {"generation"}  # noqa: RUF012  Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @staticmethod
    def _body(caller: Callable[[], str]) -> str:
        return caller()


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters.update(tojson=_tojson, items=_items)
    environment.tests["iterable"] = _is_iterable
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise GenaiError(f"{error.message}", where=f"chat template, line {error.lineno}") from error
    except (TemplateError, RecursionError) as error:
        raise GenaiError(f"cannot compile: {error}", where="chat template") from error
