# SPDX-License-Identifier: Apache-2.0
"""A pipeline drawn for the terminal: one line for each step, loops and branches as subtrees, values as arrows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from genai_bundle.manifest import Emit, Generate, If, Loop, Manifest, Run, Step

if TYPE_CHECKING:
    from rich.tree import Tree

LITERAL_WIDTH = 40


def pipeline_tree(manifest: Manifest) -> Tree:
    """The steps of `manifest` as a tree that reads from top to bottom in the order of execution."""
    from rich.tree import Tree

    tree = Tree("pipeline")
    _add(tree, manifest.steps, manifest)
    return tree


def _add(tree: Tree, steps: Iterable[Step], manifest: Manifest) -> None:
    for step in steps:
        match step:
            case Run():
                tree.add(_run(step, manifest))
            case Emit():
                tree.add("emit " + ", ".join(f"{value} ⇒ {output}" for output, value in step.values.items()))
            case If():
                _add_if(tree, step, manifest)
            case Loop():
                _add_loop(tree, step, manifest)
            case Generate():
                _add_generate(tree, step, manifest)


def _run(step: Run, manifest: Manifest) -> str:
    """`ids, kv.mask → [decoder] → logits   state kv (append)`; a name stands beside its port where the two differ."""
    feeds = [value if value == port else f"{value}:{port}" for port, value in step.inputs.items()]
    feeds += [f"{port}={_literal(value)}" for port, value in step.literals.items()]
    results = [value if value == port else f"{port}:{value}" for port, value in step.outputs.items()]
    target = step.target if step.is_op else f"[{step.target}]"
    line = " → ".join(part for part in (", ".join(feeds), target, ", ".join(results)) if part)
    states = [f"{name} ({state.update})" for name, state in manifest.state.items() if state.graph == step.target]
    return line + (f"   state {', '.join(states)}" if states else "")


def _literal(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LITERAL_WIDTH else text[: LITERAL_WIDTH - 1] + "…"


def _carried(carry: Mapping[str, tuple[str, str]]) -> str:
    return ", ".join(
        f"{name} ← {start}, then {next_}" if start != name else f"{name} ← {next_}"
        for name, (start, next_) in carry.items()
    )


def _add_loop(tree: Tree, step: Loop, manifest: Manifest) -> None:
    limits = [
        f"at most {step.max} times" if step.max is not None else "",
        f"while {step.while_}" if step.while_ else "",
        f"until {step.until}" if step.until else "",
    ]
    title = "loop " + ", ".join(limit for limit in limits if limit) + (f", index {step.index}" if step.index else "")
    branch = tree.add(title)
    if step.carry:
        branch.add(f"carry {_carried(step.carry)}")
    if step.reset:
        branch.add(f"reset {', '.join(step.reset)}")
    _add(branch, step.do, manifest)


def _add_if(tree: Tree, step: If, manifest: Manifest) -> None:
    given = " is given" if step.cond in manifest.inputs and manifest.inputs[step.cond].optional else ""
    branch = tree.add(f"if {step.cond}{given}" + (f" → {', '.join(step.out)}" if step.out else ""))
    _add(branch.add("then"), step.then, manifest)
    if step.orelse:
        _add(branch.add("else"), step.orelse, manifest)


def _add_generate(tree: Tree, step: Generate, manifest: Manifest) -> None:
    branch = tree.add("generate at most max_tokens tokens, until an end token or a stop string")
    branch.add(f"carry {_carried(step.carry)}")
    _add(branch, step.do, manifest)
    branch.add(f"{step.logits} → sample → token")
    if step.draft:
        draft = branch.add(f"draft: {step.draft.logits} guesses tokens")
        if step.draft.carry:
            draft.add(f"carry {_carried(step.draft.carry)}")
        _add(draft, step.draft.do, manifest)
    branch.add("emit " + ", ".join(f"{value} ⇒ {output}" for output, value in step.emit.items()))
