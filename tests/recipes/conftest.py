# SPDX-License-Identifier: Apache-2.0
"""Builds each recipe once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import genai_runner
from conftest import BACKENDS
from genai_bundle.builder.recipe import build_recipe

HERE = Path(__file__).parent

Built = Callable[[str], Path]
Open = Callable[..., Any]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """`built("examples/chat")` is the bundle made from that recipe."""
    folder = tmp_path_factory.mktemp("bundles")
    known: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in known:
            known[name] = folder / f"{Path(name).name}.genai"
            build_recipe(HERE / f"{name}.yaml", known[name])
        return known[name]

    return build


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["engine", "literal"])
def pipeline(request: pytest.FixtureRequest, backend: str, built: Built) -> Iterator[Open]:
    """`pipeline("chat")` is that example, loaded; `generate` by the decode engine or as its literal expansion."""
    opened: list[Any] = []

    def load(name: str, **how: Any) -> Any:
        opened.append(genai_runner.load(built(f"examples/{name}"), backend, literal=request.param, threads=1, **how))
        return opened[-1]

    yield load
    for one in opened:
        one.close()
