# SPDX-License-Identifier: Apache-2.0
"""Everything that this project raises on purpose, with the exit code that a command ends with.

    GenaiError                1   the base; an application that wants one `except` takes this one
    ├─ UsageError             2   wrong arguments, a missing input, a prompt longer than the context
    ├─ InvalidBundle          3   the bundle breaks a rule of the format; `rule` names it
    │  ├─ ContainerError          C*  the ZIP profile: layout, names, directory
    │  ├─ ManifestError           M*  manifest.json: canonical form, shape, values
    │  ├─ VersionError            V*  a format version or a feature that this reader does not know
    │  ├─ IntegrityError          I*  a member's bytes differ from the manifest's digest
    │  ├─ GrammarError            P*  the pipeline: names, scopes, states, emits, tests
    │  └─ GraphError              G*  an ONNX graph, or the manifest's use of its ports
    ├─ SourceError            3   what a builder was given: a checkpoint, a recipe
    ├─ TrustError             4   a signature is missing, foreign or does not hold
    ├─ VerificationError      4   a golden vector gave another result
    ├─ ProofError             4   a built bundle does not reproduce its source
    └─ BackendError           5   an engine could not load or run a graph

A command that is interrupted ends with 130.
"""

from __future__ import annotations


class GenaiError(Exception):
    """What is wrong, where, what was expected and, as `hint`, what to do about it.

    `where` is a place inside what was read: a member, a document path such as `steps[1].generate.do[0].run`, an offset.
    `rule` is the id of the broken rule in the specification, such as `M11`.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, where: str | None = None, rule: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.rule = rule
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        rule = f" [{self.rule}]" if self.rule else ""
        hint = f". {self.hint}" if self.hint else ""
        return " ".join(f"{place}{self.message}{rule}{hint}".split("\n"))


class UsageError(GenaiError):
    """The caller asked for something that cannot be done: wrong arguments, a missing input, a prompt too long."""

    exit_code = 2


class InvalidBundle(GenaiError):  # noqa: N818  an umbrella, never raised itself
    """The bundle breaks a rule of the format. Never raised itself: its subclasses say which part."""

    exit_code = 3


class ContainerError(InvalidBundle):
    """The container is not a bundle's ZIP profile (rules C*)."""


class ManifestError(InvalidBundle):
    """`manifest.json` is not canonical JSON or not a manifest (rules M*)."""


class VersionError(InvalidBundle):
    """The bundle needs a format version or a feature that this reader does not know (rules V*)."""


class IntegrityError(InvalidBundle):
    """A member's bytes are not those that the manifest lists (rules I*)."""


class GrammarError(InvalidBundle):
    """The pipeline does not make sense: a name, scope, state, emit or test (rules P*)."""


class GraphError(InvalidBundle):
    """An ONNX graph is not allowed in a bundle, or the manifest uses ports that it lacks (rules G*)."""


class SourceError(GenaiError):
    """A builder's source (checkpoint, recipe, graph) cannot be turned into a bundle."""

    exit_code = 3


class TrustError(GenaiError):
    """A signature is missing, made by somebody else, or does not hold."""

    exit_code = 4


class VerificationError(GenaiError):
    """A golden vector gave another result than the bundle promises."""

    exit_code = 4


class ProofError(GenaiError):
    """A built bundle does not reproduce the source that it was built from."""

    exit_code = 4


class BackendError(GenaiError):
    """An engine could not load or run a graph."""

    exit_code = 5
