# SPDX-License-Identifier: Apache-2.0
"""What `generate` means: the loop that it stands for (spec/pipeline.md, Generate).

The decode engine must give what this gives. Names that begin with `$` are the expansion's own: no document can have
them. `$ids` holds the part of the prompt that the first iteration runs, `$prompt` all of it.
"""

from __future__ import annotations

from genai_bundle.manifest import Emit, Generate, Loop, Run, Step


def ids_name(step: Generate) -> str:
    """The carried name that holds token ids: the one whose next value is `token`."""
    return next(name for name, (_, following) in step.carry.items() if following == "token")


def expand(step: Generate, room: int) -> tuple[Step, ...]:
    """`step` as run, loop and emit; `room` is the number of tokens that may be generated at most.

    Expects `$prompt` and `$ids` in scope; leaves `$new`, all new ids i64[1, N].
    """
    where, ids = step.where, ids_name(step)

    def run(op: str, inputs: dict[str, str], outputs: dict[str, str], **literals: object) -> Run:
        return Run(target=op, inputs=inputs, literals=literals, outputs=outputs, where=where)

    tokens = {output: "token" for output, value in step.emit.items() if value == "token"}
    texts = [output for output, value in step.emit.items() if value != "token"]
    body: list[Step] = [
        *step.do,
        run("sample@1", {"logits": step.logits, "history": "$history", "new": "$new"}, {"token": "token"}),
        run("concat@1", {"a": "$history", "b": "token"}, {"y": "$longer"}, axis=1),
        run("concat@1", {"a": "$new", "b": "token"}, {"y": "$more"}, axis=1),
        run("stop@1", {"tokens": "$more"}, {"done": "$done"}),
    ]
    if tokens:
        body.append(Emit(values=tokens, where=where))
    carry = {**step.carry, ids: ("$ids", "token"), "$history": ("$prompt", "$longer"), "$new": ("$none", "$more")}
    loop = Loop(carry=carry, max=room, index=None, while_=None, until="$done", reset=(), do=tuple(body), where=where)
    after: list[Step] = []
    for number, output in enumerate(texts):
        after.append(run("text.decode@1", {"tokens": "$new"}, {"text": f"$text{number}"}))
        after.append(Emit(values={output: f"$text{number}"}, where=where))
    return (run("zeros@1", {}, {"y": "$none"}, shape=[1, 0], dtype="i64"), loop, *after)
