# SPDX-License-Identifier: Apache-2.0
"""Every check, each in an environment of its own: `nox` runs lint, types and tests; `nox -l` lists the rest."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"

TORCH = "torch==2.13.0"


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format, by ruff."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types, by mypy in its strict mode."""
    session.install(TORCH)
    session.install("-e", ".[build,gguf,mobius,dev]")
    session.run("mypy", "--strict")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests that need no torch; arguments go to pytest."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def builder_tests(session: nox.Session) -> None:
    """The tests that export and prove checkpoints."""
    session.install(TORCH)
    session.install("-e", ".[build,gguf,mobius,adapters,openvino,peers,test]")
    needs = {"GENAI_REQUIRE": "torch,openvino,peers"}
    session.run("pytest", "-m", "torch or openvino or peers", *session.posargs, env=needs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """The reader against many more generated and damaged bundles than the ordinary run tries."""
    session.install("-e", ".[test]")
    session.run("pytest", "-k", "fuzz", "--hypothesis-profile=fuzz", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Side-by-side figures; each script prints a table."""
    session.install(TORCH)
    session.install("-e", ".[build,peers,test]", "psutil")
    for script in sorted(Path("benchmarks").glob("*.py")):
        session.run("python", str(script), *session.posargs)


def lowest(requirements: list[str]) -> list[str]:
    """Each requirement that states a lower bound, pinned to it."""
    bounds = (re.match(r"([\w.-]+)>=([\w.]+)", requirement) for requirement in requirements)
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


@nox.session
def min_versions(session: nox.Session) -> None:
    """The tests on the lowest versions that pyproject.toml allows."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    more = [requirement for name in ("audio", "chat", "grammar", "image", "plot") for requirement in extras[name]]
    session.install("-e", ".[test]", *lowest(project["dependencies"] + more))
    session.run("pytest", *session.posargs)


@nox.session
def changelog(session: nox.Session) -> None:
    """The changelog as the next release would print it."""
    session.install("towncrier>=24.8")
    session.run("towncrier", "build", "--draft", "--version", "next")
