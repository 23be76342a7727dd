# SPDX-License-Identifier: Apache-2.0
"""What tells the parts of a model's answers apart, as the chat template shows it.

A template writes earlier answers with the delimiters that the model uses. What is in a form that the manifest cannot
state is left out: such a part is content.
"""

from __future__ import annotations

from typing import Any

_REASONING = (["<think>", "</think>"], ["[THINK]", "[/THINK]"])

_CHANNELS = {
    "begin": "<|channel|>",
    "message": "<|message|>",
    "end": ["<|end|>", "<|call|>", "<|return|>"],
    "reasoning": "analysis",
    "calls": "to=functions.",
}


def reply_of(template: str | None) -> dict[str, Any]:
    """The manifest's `text.reply` under its key; nothing where the template shows no parts."""
    text = template or ""
    if all(sign in text for sign in ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "functions.")):
        return {"reply": {"channels": _CHANNELS}}
    calls = _calls(text)
    reasoning = next((pair for pair in _REASONING if pair[1] in text), None)
    found = ({"reasoning": reasoning} if reasoning else {}) | ({"calls": calls} if calls is not None else {})
    return {"reply": found} if found else {}


def _calls(template: str) -> dict[str, str] | None:
    if "[TOOL_CALLS]" in template:
        return {"open": "[TOOL_CALLS]", **({"arguments": "[ARGS]"} if "[ARGS]" in template else {})}
    if "<tool_call>" in template and "<arg_key>" not in template and "<function=" not in template:
        return {"open": "<tool_call>", "close": "</tool_call>"}
    if "<|python_tag|>" in template and '"parameters": ' in template:
        return {}
    return None
